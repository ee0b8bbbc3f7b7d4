import io

import pytest
from rich.console import Console
from small_runs import finished
from synthetic_shards import COMPONENTS, collected, drawn, shard
from test_planning import own_prompts

from gbcd.analysis.reduce import summarise
from gbcd.commands.closing import MAX_TABLES, next_step, show_results


def shown(*shards, score=None):
    text = io.StringIO()
    show_results(summarise(collected(shards), COMPONENTS, score), Console(file=text, width=200))
    return text.getvalue()


def without(values, *names):
    return {name: table for name, table in values.items() if name not in names}


@pytest.fixture
def values():
    found = drawn(30)
    found["attribution"][:, 9] = -5 + 0.1 * found["attribution"][:, 9]
    return found


def test_norm_and_attribution_stand_side_by_side_with_sign_and_interval(values):
    values["attribution"][:2] = float("nan")
    values["centered_grad_norm"][:5] = float("nan")
    text = shown(shard(values, [f"t{index % 6}" for index in range(30)]))
    assert "ioi, foil: ranked by attribution, means over 28 of 30 prompts" in text
    first = next(line for line in text.splitlines() if line.split()[:1] == ["1"])
    rank, component, attribution, low, _, high, agreement, *_ = first.split()
    assert (rank, component, agreement) == ("1", "m0", "100")
    assert float(low) < float(attribution) < float(high) < 0
    assert "norm (n = 25)" in text
    assert "attribution (n" not in text
    assert "Attribution  what a component's output adds to the loss" in text
    assert "Sign         foil: above zero a component works against the wrong answer, below zero for it\n" in text
    assert "gradient with respect to the weights that a component writes with, their input less its mean" in text
    assert "it has no sign; it is for comparison, and does not rank" in text
    assert text.count("does not rank") == 1
    assert "Same sign    share of the prompts whose attribution has the sign of the mean" in text
    assert "a0.norm" not in text


def test_each_loss_has_what_the_sign_says_under_it(values):
    names = ("margin", "right_answer", "foil", "inverse_logits", "of_a_file")
    text = shown(*(shard(values, ["a"] * 30, wrong=name) for name in names))
    assert [
        line.split(None, 1)[1].partition(", below")[0] for line in text.splitlines() if line.startswith("Sign ")
    ] == [
        "margin: above zero a component works for the right answer",
        "right_answer: above zero a component works against the right answer",
        "foil, inverse_logits: above zero a component works against the wrong answer",
        "of_a_file: above zero a component raises the loss",
    ]


def test_without_references_the_table_says_what_ranks_instead(values):
    text = shown(shard(without(values, "attribution", "mean_attribution", "contrast_norm"), ["a", "b"] * 15))
    assert "ranked by writing_norm, means over 30 prompts" in text
    assert "in place of zero; it is for comparison, and does not rank" in text


def test_a_score_by_name_has_a_column_of_its_own(values):
    assert "contrast_norm" in shown(shard(values, ["a", "b"] * 15), score="contrast_norm")


def test_a_task_without_any_finite_value_is_named_and_the_others_are_shown(values):
    nothing = {name: table[:4] * float("nan") for name, table in values.items()}
    text = shown(shard(nothing, list("abab"), task="empty"), shard(values, ["a"] * 30))
    assert "empty, foil: none of its 4 prompts has finite values" in text
    assert "ioi, foil: ranked by attribution" in text


def test_many_tasks_have_a_line_each(values):
    text = shown(*(shard(values, ["a"] * 30, task=f"t{index}") for index in range(MAX_TABLES + 1)))
    assert "t0, foil (by attribution): m0, " in text


@pytest.mark.parametrize(("template", "said"), [("one", "gbcd evaluate"), ("t{}", "Effects cannot be measured: no p")])
def test_effects_can_be_measured_where_a_prompt_has_a_partner_at_least(tmp_path, template, said):
    fields = {"counterfactual": lambda *_: None, "template": lambda number, _: template.format(number)}
    study, text = own_prompts(tmp_path, **fields), io.StringIO()
    next_step(study, finished(study), Console(file=text, width=200))
    assert said in text.getvalue()
