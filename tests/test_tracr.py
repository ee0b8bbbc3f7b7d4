"""Compiled programs: the shipped models, the engine on them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_values import check, engine_values, exact_calibration, oracle_values
from tiny_models import small_tokenizer

from gbcd import tasks, wrong_answers
from gbcd.engine.engine import Engine, packed_for
from gbcd.engine.oracle import Oracle
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel, prepared
from gbcd.prompting.outputs import SPACE_KEY, OutputSpace, space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.tracr.model import PAD, TracrConfig, TracrModel

PROGRAMS = ["tracr_xproportion", "tracr_reverse"]
SIZES = {"tracr_xproportion": 4 + 16 + 64 + 256 + 1024, "tracr_reverse": 3 + 9 + 27 + 81 + 243}
DEFINED = {
    "tracr_xproportion": {"foil", "inverse_logits", "right_answer"},
    "tracr_reverse": {"logit_difference", "foil", "least_likely", "inverse_logits", "right_answer"},
}


@pytest.fixture(scope="module", params=PROGRAMS)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return models.load(request.param, "cpu", "float64")


def drawn(loaded: LoadedModel, n: int) -> list[EncodedPrompt]:
    return encode(tasks.draw(loaded.name, loaded.tokenizer, n, seed=1), loaded.tokenizer, loaded.context)


def space(loaded: LoadedModel) -> OutputSpace:
    found = space_of(loaded.tokenizer)
    assert found is not None
    return found


def test_outputs_equal_those_of_the_program_on_every_input(loaded: LoadedModel):
    lines = (models.SHIPPED[loaded.name] / "prompts.jsonl").read_text().splitlines()
    assert len(lines) == SIZES[loaded.name]
    kind = space(loaded)
    for line in map(json.loads, lines[:: 1 + len(lines) // 300]):
        ids = torch.tensor([loaded.tokenizer(line["prompt"])["input_ids"]])
        outputs = loaded.model(ids).logits[0, 1:]
        found = outputs.argmax(1) if kind.symbols else outputs[:, 0]
        assert found.tolist() == pytest.approx(kind.parse(line["answer"]), abs=1e-3)


def test_the_task_is_every_input_once_and_no_more(loaded: LoadedModel):
    prompts = tasks.draw(loaded.name, loaded.tokenizer, SIZES[loaded.name], seed=0)
    stored = map(json.loads, (models.SHIPPED[loaded.name] / "prompts.jsonl").read_text().splitlines())
    expected = {line["prompt"]: (line["answer"], line["wrong_answer"]) for line in stored}
    parse = space(loaded).parse
    assert {prompt.text for prompt in prompts} == set(expected)
    for prompt in prompts:
        answer, wrong = expected[prompt.text]
        assert parse(prompt.answers[0]) == pytest.approx(parse(answer))
        assert parse(prompt.wrong_answers[0]) == parse(wrong)
    with pytest.raises(BadInput, match=f"{SIZES[loaded.name]} with this tokenizer"):
        tasks.draw(loaded.name, loaded.tokenizer, SIZES[loaded.name] + 1, seed=0)


def test_padding_and_company_change_no_output(loaded: LoadedModel):
    prompts = drawn(loaded, 30)
    together = loaded.decoder.run(packed_for(loaded, [(prompt.ids,) for prompt in prompts])).logits
    for row, prompt in enumerate(prompts):
        alone = loaded.model(torch.tensor([prompt.ids])).logits[0]
        torch.testing.assert_close(together[row, : len(prompt.ids)], alone)


def test_the_published_parts_are_exactly_those_whose_weights_are_used(loaded: LoadedModel):
    oracle = Oracle(loaded)
    used = {name for name, weight in oracle.weights().items() if bool(weight.any())}
    circuit = tasks.get(loaded.name).circuit
    assert circuit is not None
    assert set(circuit.parts) <= used
    selecting = {"a0.h0.q", "a0.h0.k"} if loaded.name == "tracr_reverse" else set()
    assert used - set(circuit.parts) == selecting | {"embed.token", "embed.position", "unembed"}


def test_every_definition_is_defined_or_refused_with_the_reason(loaded: LoadedModel):
    prompts = drawn(loaded, 8)
    for name in wrong_answers.names():
        if name in DEFINED[loaded.name]:
            wrong_answers.refuse_undefined(wrong_answers.get(name), prompts, space(loaded))
        else:
            with pytest.raises(
                BadInput, match=rf"{name} is (not defined for answers of the kind \w+: \w+|defined for tokens alone)"
            ):
                wrong_answers.refuse_undefined(wrong_answers.get(name), prompts, space(loaded))


def test_tables_say_what_was_asked_for_and_whether_the_model_is_right(loaded: LoadedModel):
    prompts = drawn(loaded, 40)
    engine = Engine(loaded, ["foil", "right_answer"])
    table = pl.from_arrow(engine.compute(prompts).prompts)
    assert isinstance(table, pl.DataFrame)
    assert table["correct"].all()
    assert table["answer_logit"].null_count() == len(table)
    parse = space(loaded).parse
    foils = table.filter(pl.col("wrong_answer") == "foil")
    assert [parse(text) for text in foils["wrong_token"]] == [parse(p.prompt.wrong_answers[0]) for p in prompts]
    assert table.filter(pl.col("wrong_answer") == "right_answer")["loss"].max() < 1e-9
    assert foils["loss"].min() > 0.1


def test_a_foil_is_the_farthest_output_position_by_position():
    assert OutputSpace((), 0.0, 1.0).farthest((0.0, 0.4, 0.5, 1.0)) == (1.0, 1.0, 1.0, 0.0)
    assert OutputSpace(("1", "2", "3")).farthest((0.0, 1.0, 2.0)) == (2.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("answer", "wrong", "problem"),
    [
        ("1 2", "3 3", "has 2 values, and the prompt has 3 positions"),
        ("3 2 1", "3 2 1", "are the same"),
        ("3 2 4", None, "'4' is no output of this model"),
    ],
)
def test_answers_that_cannot_be_are_refused(answer: str, wrong: str | None, problem: str):
    tokenizer = models.load_tokenizer("tracr_reverse")
    prompt = Prompt("p/0", "p", "t", "1 2 3", (answer,), () if wrong is None else (wrong,))
    with pytest.raises(BadInput, match=problem):
        encode([prompt], tokenizer)


def test_a_symbol_that_the_model_does_not_read_and_another_models_task_are_refused():
    tokenizer = models.load_tokenizer("tracr_reverse")
    with pytest.raises(BadInput, match="a symbol that is not in the model's vocabulary"):
        encode([Prompt("p/0", "p", "t", "1 7 3", ("3 2 1",))], tokenizer)
    for other in (small_tokenizer(), models.load_tokenizer("tracr_xproportion")):
        with pytest.raises(BadInput, match="--model tracr_reverse"):
            tasks.draw("tracr_reverse", other, 3, seed=0)


def random_compiled(n_heads: int, n_outputs: int, seed: int) -> LoadedModel:
    """A transformer of tracr's shape with random weights, whose every part matters."""
    torch.manual_seed(seed)
    shape = {"n_layers": 2, "n_heads": n_heads, "d_head": 3, "d_model": 5, "d_mlp": 4, "vocab_size": 6}
    model = TracrModel(TracrConfig(**shape, n_outputs=n_outputs, max_position_embeddings=7)).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.6)
    tokenizer = models.load_tokenizer("tracr_xproportion")
    symbols = tuple("abcd"[:n_outputs]) if n_outputs > 1 else ()
    tokenizer.init_kwargs[SPACE_KEY] = asdict(OutputSpace(symbols, 0.0, 1.0))
    return prepared("random", model, tokenizer)


@given(
    n_heads=st.sampled_from([1, 2]),
    n_outputs=st.sampled_from([1, 3]),
    definition=st.sampled_from(["foil", "inverse_logits", "right_answer", "logit_difference", "least_likely"]),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_every_statistic_equals_the_oracle(
    n_heads: int, n_outputs: int, definition: str, lengths: list[int], seed: int
) -> None:
    loaded = random_compiled(n_heads, n_outputs, seed)
    if n_outputs == 1 and definition in ("logit_difference", "least_likely"):
        return
    kind, generator = space(loaded), torch.Generator().manual_seed(seed)
    prompts = [random_prompt(number, length, kind, generator) for number, length in enumerate(lengths)]
    encoded = encode(prompts, loaded.tokenizer, loaded.context)
    sample = [replace(one, prompt=replace(one.prompt, id=f"sample/{one.prompt.id}")) for one in encoded] + encoded
    engine = Engine(loaded, [definition], exact_calibration(Oracle(loaded), sample, "position"))
    # A squared norm is rounded by 2e-16 of its terms: a key that nearly cancels, 5e-7 of the largest norm, keeps eight
    # digits after the root. From 1e-4 on it keeps ten.
    check(engine_values(engine, encoded), oracle_values(loaded, encoded, definition, sample), loaded, 1e-9, floor=1e-4)


def random_prompt(number: int, length: int, kind: OutputSpace, generator: torch.Generator) -> Prompt:
    def pick(n: int) -> list[int]:
        return torch.randint(n, (length,), generator=generator).tolist()

    right = tuple(map(float, pick(3))) if kind.symbols else tuple(torch.rand(length, generator=generator).tolist())
    text = " ".join("wxyz"[index] for index in pick(4))
    return Prompt(f"p/{number}", "p", "t", text, (kind.write(right),), (kind.write(kind.farthest(right)),))


def test_token_zero_is_padding():
    assert models.load_tokenizer("tracr_reverse").pad_token_id == PAD


def test_nothing_in_the_package_of_models_is_anything_but_data():
    for name in PROGRAMS:
        suffixes = {path.suffix for path in Path(models.SHIPPED[name]).iterdir()}
        assert suffixes == {".json", ".jsonl", ".safetensors"}
