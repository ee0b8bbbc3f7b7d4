"""The shipped reference model solves the four language tasks on combinations that it never saw."""

from __future__ import annotations

import json
from functools import cache

import pytest
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from gbcd import tasks
from gbcd.models.load import REFERENCE_DIRECTORY
from gbcd.prompting.prompt import Prompt
from training import held_out, quality
from training.tokenizer import build_tokenizer

SHIPPED = REFERENCE_DIRECTORY
TOKENIZER = build_tokenizer(256)


@pytest.fixture(scope="module")
def shipped() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    model = GPT2LMHeadModel.from_pretrained(SHIPPED, use_safetensors=True)
    model.eval()
    return model, AutoTokenizer.from_pretrained(SHIPPED)


@cache
def unseen(task: str) -> list[Prompt]:
    return held_out.held_out_prompts(task, TOKENIZER, 300, seed=77)


class TestShippedModel:
    def test_it_is_a_small_gpt2_with_its_own_tokenizer(self, shipped: tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]):
        model, tokenizer = shipped
        assert isinstance(model, GPT2LMHeadModel)
        assert model.config.n_layer >= 4
        assert model.config.n_head >= 8
        assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
        assert sum(path.stat().st_size for path in SHIPPED.glob("*.safetensors")) <= 10e6
        assert not list(SHIPPED.glob("*.bin"))

    @pytest.mark.parametrize(
        ("task", "figure", "least"),
        [
            ("ioi", "above_wrong", 0.99),
            ("ioi", "accuracy", 0.95),
            ("docstring", "accuracy", 0.95),
            ("greater_than", "probability_difference", 0.9),
            ("induction", "accuracy", 0.9),
        ],
    )
    def test_it_solves_what_it_never_saw(
        self, shipped: tuple[GPT2LMHeadModel, PreTrainedTokenizerBase], task: str, figure: str, least: float
    ):
        assert getattr(quality.measure(*shipped, unseen(task)), figure) >= least

    @pytest.mark.parametrize("task", ["ioi", "greater_than", "docstring", "induction"])
    def test_the_figures_of_its_record_are_those_of_its_weights(
        self, shipped: tuple[GPT2LMHeadModel, PreTrainedTokenizerBase], task: str
    ):
        recorded = json.loads((SHIPPED / "training.json").read_text())["quality"][task]
        found = quality.measure(*shipped, unseen(task))
        assert found.accuracy == pytest.approx(recorded["accuracy"], abs=0.08)
        assert found.probability_difference == pytest.approx(recorded["probability_difference"], abs=0.08)

    def test_ioi_is_not_the_work_of_one_layer(self, shipped: tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]):
        prompts = tasks.draw("ioi", TOKENIZER, 32 * 12, seed=9)
        needed = [layer.accuracy < 0.8 for layer in quality.without_layer(*shipped, prompts)]
        assert sum(needed) >= 2
        assert any(needed[1:])

    def test_the_record_says_how_it_was_made(self):
        record = json.loads((SHIPPED / "training.json").read_text())
        assert record["settings"]["seed"] == 0
        assert {"torch", "transformers"} <= set(record["versions"])
        assert record["loss"][-1]["loss"] < record["loss"][0]["loss"]
