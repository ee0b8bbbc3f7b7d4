"""Models pad their vocabulary: rows that stand for no token never compete, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from small_runs import finished, small_study
from tiny_models import random_model, small_tokenizer

import gbcd as package
from gbcd import wrong_answers

PADDING = 5
DEFINITIONS = ("logit_difference", "foil", "most_dissimilar", "least_likely", "inverse_logits", "right_answer")


def saved(folder: Path, family: str, padding: int) -> str:
    """A model of the tokenizer's vocabulary, with `padding` rows more that would win every comparison."""
    model = random_model(family, len(small_tokenizer()), dtype=torch.float32)
    if padding:
        model.resize_token_embeddings(len(small_tokenizer()) + padding, mean_resizing=False)
        row = model.get_output_embeddings().weight.detach()[100]
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.data[-padding:] = torch.stack([(-1.0) ** number * 40 * row for number in range(padding)])
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_padding_changes_no_row_and_is_never_the_wrong_token(tmp_path: Path, family: str) -> None:
    """GPT-2 and Qwen2 tie their matrices, Llama does not."""
    assert set(DEFINITIONS) <= set(wrong_answers.names())
    norms, prompts = {}, {}
    for padding in (0, PADDING):
        model = saved(tmp_path / f"model{padding}", family, padding)
        study = small_study(tmp_path / f"run{padding}", model=model, wrong_answers=DEFINITIONS, prompts_per_task=12)
        assert finished(study).missing == ()
        norms[padding] = package.scan(study.out).sort("prompt_id", "wrong_answer", "component").collect()
        prompts[padding] = package.prompts(study.out).sort("prompt_id", "wrong_answer").collect()
    said = [name for name in prompts[0].columns if prompts[0].schema[name] in (pl.String, pl.Boolean)]
    assert prompts[PADDING][said].equals(prompts[0][said])
    values = [name for name in norms[0].columns if norms[0].schema[name].is_float()]
    for name in values:
        found, expected = norms[PADDING][name], norms[0][name]
        assert found.is_null().equals(expected.is_null())
        largest = float(expected.abs().max() or 1.0)  # pyright: ignore[reportArgumentType]
        assert float((found - expected).abs().max() or 0.0) <= 1e-5 * largest  # pyright: ignore[reportArgumentType]
