"""What the study of scores averages, and how wide its intervals are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from discovery_steps.aggregation_curve import curve, enough, mean_curves
from discovery_steps.elimination import elimination_order
from discovery_steps.groups import Found, averages, groups_of, with_differences
from discovery_steps.tables import figure

from gbcd import wrong_answers

# a control of the benchmark, and no definition that other tests should find
wrong_answers._REGISTRY.pop("random_token", None)

RNG = np.random.default_rng(0)


def found(model: str, values: list[float], method: str = "norm", task: str = "ioi") -> Found:
    return Found(model, task, "foil", method, 2.0, {"spearman": np.array(values)})


def row_of(members: list[Found], group: str, **groups: list[str]):
    models = list(dict.fromkeys(one.model for one in members))
    (row,) = [
        row for row in averages(members, groups or groups_of(models)) if (row["group"], row["task"]) == (group, "all")
    ]
    return row


def test_groups_are_each_model_all_of_them_and_those_held_out() -> None:
    assert groups_of(["reference"]) == {"reference": ["reference"]}
    assert list(groups_of(["a", "b", "c"])) == ["a", "b", "c", "all", "held out"]
    assert groups_of(["a", "b", "c"])["held out"] == ["b", "c"]


def test_a_group_averages_tasks_within_models_and_then_models() -> None:
    members = [found("a", [0.2]), found("a", [0.4], task="docstring"), found("b", [0.9])]
    assert row_of(members, "all")["spearman"] == pytest.approx(0.6)
    assert row_of(members, "all")["spearman_range"] == [0.3, 0.9]
    assert row_of(members, "held out")["n_models"] == 1


def test_one_model_has_an_interval_over_prompts_alone() -> None:
    row = row_of([found("a", [0.5, 0.4, 0.6])], "a")
    assert row["spearman_ci"] == [pytest.approx(0.5 - 0.196), pytest.approx(0.5 + 0.196)]
    assert row["spearman_ci_models"] is None


def test_intervals_over_models_cover_a_new_model_as_often_as_they_say() -> None:
    # models are draws about 0.3, with little noise of prompts: 95 % of the intervals must hold the mean of them all
    covered = 0
    for _ in range(400):
        members = [found(name, [value, *(value + RNG.normal(0, 0.001, 20))]) for name, value in
                   zip("abc", RNG.normal(0.3, 0.02, 3), strict=True)]  # fmt: skip
        low, high = row_of(members, "all")["spearman_ci_models"]
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_what_prompts_do_to_all_models_alike_stays_in_the_interval() -> None:
    shared = RNG.normal(0, 0.1, 200)
    one = row_of([found(name, [0.3, *(0.3 + shared)]) for name in "abc"], "all")
    assert one["spearman_ci"][1] - one["spearman_ci"][0] == pytest.approx(2 * 1.96 * shared.std(), abs=1e-3)
    low, high = one["spearman_ci_models"]
    assert high - low >= one["spearman_ci"][1] - one["spearman_ci"][0] - 1e-3


def test_a_lead_is_taken_replica_by_replica() -> None:
    shared = RNG.normal(0, 0.2, 50)
    members = [found("a", [0.5, *(0.5 + shared)], "base"), found("a", [0.6, *(0.6 + shared)], "better")]
    better = with_differences(members, "foil", "base")[1]
    np.testing.assert_allclose(better.figures["spearman_lead"], 0.1)
    text = figure(next(averages([better], {"a": ["a"]})), "spearman_lead")
    assert text == "0.10 [0.10, 0.10]"


def test_the_curve_of_aggregation_ends_at_the_whole_pool() -> None:
    effects = np.arange(12.0)
    values = 100 + effects + RNG.normal(0, 20, (300, 12))
    rows = [{"model": "a", "method": "norm", **row} for row in curve(values, effects, np.random.default_rng(1))]
    assert [row["n"] for row in rows] == [1, 4, 16, 64, 256, "all"]
    assert rows[-1]["whole"] == pytest.approx(1)
    assert rows[0]["truth"] < rows[2]["truth"] < rows[-1]["truth"]
    assert rows[0]["truth_sd"] > rows[3]["truth_sd"]
    curves = mean_curves(rows, {"a": ["a"]})
    assert enough(curves, margin=2.0) == 1
    assert enough(curves, margin=0.0) in (256, "all")


class Pairwise:
    """A model that works as long as components 0 and 1 are both there, a little helped by 2."""

    everything = frozenset(range(5))

    def run(self, circuits: list[frozenset[int]]) -> list[np.ndarray]:
        return [np.array([10.0 * ({0, 1} <= circuit) + (2 in circuit)]) for circuit in circuits]


def test_elimination_keeps_what_works_only_together() -> None:
    order = elimination_order(Pairwise())  # pyright: ignore[reportArgumentType]
    assert set(np.argsort(-order)[:2]) == {0, 1}
    assert order[2] == 2
