"""`gbcd.gradient_norms`: the notebook's way in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from tiny_models import tiny_gpt2

import gbcd
from gbcd import tasks
from gbcd.errors import BadInput


@pytest.mark.filterwarnings("ignore:.*no centered_grad_norm")
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
    with pytest.warns(UserWarning, match=r"no centered_grad_norm .* for 1 prompt: "):
        found = gbcd.gradient_norms(model, tokenizer, [prompt], wrong_answer="right_answer")
    model.requires_grad_(True)
    logits = model(**tokenizer(prompt.text, return_tensors="pt")).logits[0, -1]
    answer = tokenizer.encode(prompt.answers[0])[0]
    (-logits.log_softmax(0)[answer]).backward()
    expected = float(model.transformer.h[1].mlp.c_fc.weight.grad.norm())
    row = found.filter(pl.col("component") == "m1.in")
    assert math.isclose(row["grad_norm"].item(), expected, rel_tol=1e-4)


@pytest.mark.filterwarnings("ignore:.*no centered_grad_norm")
def test_by_default_the_margin_is_attributed_against_counterfactuals_or_partners() -> None:
    model, tokenizer = tiny_gpt2()
    prompts = [replace(one, counterfactual=None, template="t") for one in tasks.draw("ioi", tokenizer, 20, seed=0)]
    prompts += tasks.draw("docstring", tokenizer, 12, seed=0)
    found = gbcd.gradient_norms(model, tokenizer, prompts, batch_size=7)
    assert found["wrong_answer"].unique().to_list() == ["margin"]
    assert found["prompt_id"].unique(maintain_order=True).to_list() == [one.id for one in prompts]
    counterfactual = found.filter(pl.col("task") == "docstring")
    assert counterfactual["attribution"].null_count() == 0
    assert found["attribution"].null_count() < len(found) / 4
    alone = gbcd.gradient_norms(model, tokenizer, prompts[:20])
    columns = ["centered_grad_norm", "mean_attribution"]
    for name in columns:  # means are of a task's own prompts
        both, one = found.filter(pl.col("task") == "ioi")[name].fill_null(0), alone[name].fill_null(0)
        np.testing.assert_allclose(both.to_numpy(), one.to_numpy(), rtol=1e-3, atol=1e-5)
    without = [replace(one, wrong_answers=(), twin=None) for one in prompts[:9]]
    assert gbcd.gradient_norms(model, tokenizer, without)["wrong_answer"].unique().to_list() == ["inverse_logits"]


def test_what_is_not_centred_is_said() -> None:
    model, tokenizer = tiny_gpt2()
    prompts = tasks.draw("ioi", tokenizer, 3, seed=0)
    with pytest.warns(UserWarning, match=r"no centered_grad_norm .* for 3 prompts: .* at least 8 prompts"):
        found = gbcd.gradient_norms(model, tokenizer, prompts)
    assert found["centered_grad_norm"].null_count() == len(found)


def test_a_definition_that_is_not_defined_for_a_prompt_is_refused() -> None:
    model, tokenizer = tiny_gpt2()
    prompts = [replace(one, wrong_answers=()) for one in tasks.draw("ioi", tokenizer, 3, seed=0)]
    with pytest.raises(BadInput, match=r"foil compares with the task's own wrong answer, and \S+ has none"):
        gbcd.gradient_norms(model, tokenizer, prompts, wrong_answer="foil")


def test_refuses_no_prompts() -> None:
    model, tokenizer = tiny_gpt2()
    with pytest.raises(BadInput, match="no prompts"):
        gbcd.gradient_norms(model, tokenizer, [])
