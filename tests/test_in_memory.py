"""`gbcd.gradient_norms`: the notebook's way in."""

from __future__ import annotations

import math

import polars as pl
import pytest
from tiny_models import tiny_gpt2

import gbcd
from gbcd import tasks
from gbcd.errors import BadInput


def test_gives_the_tidy_table_with_one_row_per_prompt_wrong_answer_and_part() -> None:
    model, tokenizer = tiny_gpt2()
    prompts = tasks.draw("ioi", tokenizer, 20, seed=0)
    found = gbcd.gradient_norms(model, tokenizer, prompts, wrong_answer=["foil", "logit_difference"])
    parts = found["component"].n_unique()
    assert len(found) == 20 * 2 * parts
    assert found.columns[:5] == ["prompt_id", "task", "template", "wrong_answer", "component"]
    head = found.filter(pl.col("node") == "a1.h0")
    assert set(head["part"]) == {"q", "k", "v", "o"}
    assert head["head"].unique().to_list() == [0]
    assert found.filter(pl.col("node") == "m1")["head"].null_count() == 2 * 20 * 2


def test_a_norm_is_that_of_autograd() -> None:
    model, tokenizer = tiny_gpt2()
    (prompt,) = tasks.draw("ioi", tokenizer, 1, seed=0)
    found = gbcd.gradient_norms(model, tokenizer, [prompt], wrong_answer="right_answer")
    model.requires_grad_(True)
    logits = model(**tokenizer(prompt.text, return_tensors="pt")).logits[0, -1]
    answer = tokenizer.encode(prompt.answers[0])[0]
    (-logits.log_softmax(0)[answer]).backward()
    expected = float(model.transformer.h[1].mlp.c_fc.weight.grad.norm())
    row = found.filter(pl.col("component") == "m1.in")
    assert math.isclose(row["grad_norm"].item(), expected, rel_tol=1e-4)


def test_refuses_no_prompts() -> None:
    model, tokenizer = tiny_gpt2()
    with pytest.raises(BadInput, match="no prompts"):
        gbcd.gradient_norms(model, tokenizer, [])
