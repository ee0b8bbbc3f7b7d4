import polars as pl
import pytest
from small_runs import finished, small_study

from gbcd.analysis.specificity import SPECIFICITY, specificity, task_contrast
from gbcd.errors import BadInput

NODES = ["a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0"]


def summary(scores):
    """`scores` by task, of the nodes in order."""
    rows = []
    for task, values in scores.items():
        order = sorted(range(5), key=lambda index: -values[index])
        rows += [
            {"task": task, "wrong_answer": "foil", "level": "node", "component": name, "layer": 0,
             "head": None if name == "m0" else index, "score": values[index], "rank": order.index(index) + 1}
            for index, name in enumerate(NODES)
        ]  # fmt: skip
        rows.append({**rows[-1], "component": "final.norm", "rank": None})
        rows.append({**rows[-2], "level": "part"})
    return pl.DataFrame(rows, schema_overrides={"layer": pl.Int32, "head": pl.Int32})


def test_shares_by_hand():
    found = task_contrast(
        summary({"one": [5.0, 1, 1, 1, 2], "two": [10.0, 10, 10, 10, 60], "three": [4.0, 1, 1, 1, 3]})
    )
    assert found.schema == SPECIFICITY
    assert found.height == 15
    row = found.filter(task="one", component="a0.h0").row(0, named=True)
    assert row["share"] == pytest.approx(2.5)
    assert row["share_elsewhere"] == pytest.approx((0.5 + 2) / 2)
    assert row["specificity"] == pytest.approx(2)
    # one node in five is the circuit: a0.h0 of tasks one and three, m0 of task two
    assert (row["n_circuits"], row["n_tasks"]) == (2, 3)
    assert found.filter(component="m0")["n_circuits"].unique().to_list() == [1]


def test_one_task_has_nothing_to_be_compared_with(tmp_path):
    assert task_contrast(summary({"one": [5.0, 1, 1, 1, 2]})).is_empty()
    study = small_study(tmp_path)
    finished(study)
    with pytest.raises(BadInput, match="one task; a contrast"):
        specificity(study.out)


def test_tasks_of_a_study_are_compared(tmp_path):
    study = small_study(tmp_path, tasks=("ioi", "induction"))
    finished(study)
    found = specificity(study.out)
    assert found.group_by("task", "wrong_answer").len()["len"].to_list() == [6] * 4
    by_task = found.filter(wrong_answer="inverse_logits").pivot(on="task", index="component", values="specificity")
    assert (by_task["ioi"] * by_task["induction"]).to_list() == pytest.approx([1.0] * 6)
