"""Contrast between tasks: which components answer to one task, and which to everything.

Scores of two tasks are not on one scale, so each is first divided by the mean score of the nodes of its task:

    share            score / mean score of the task's nodes
    share_elsewhere  mean of the shares that the node has in the study's other tasks
    specificity      share / share_elsewhere: 1 for a node that is as prominent everywhere
    n_circuits       tasks of which the node is in the circuit, of `n_tasks`

A node with a large share and a specificity near 1 is interference, or is used by every task; only ablation tells which.
"""

from __future__ import annotations

import polars as pl

from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.errors import BadInput
from gbcd.run.results import summary

SPECIFICITY = pl.Schema(
    {
        **{name: pl.String() for name in ("task", "wrong_answer", "component")},
        **{name: pl.Int32() for name in ("layer", "head")},
        **{name: pl.Float64() for name in ("share", "share_elsewhere", "specificity")},
        **{name: pl.Int64() for name in ("n_circuits", "n_tasks")},
    }
)
"""One row per task, wrong answer and node of a circuit."""


def specificity(out: str) -> pl.DataFrame:
    """How particular to each task its components are; table `SPECIFICITY`.

    Raises:
        BadInput: `out` has not been reduced, or it has one task.
    """
    found = task_contrast(summary(out).collect())
    if found.is_empty():
        raise BadInput(f"{out!r} has one task; a contrast between tasks needs a study of two or more")
    return found


def task_contrast(table: pl.DataFrame) -> pl.DataFrame:
    """The table `SPECIFICITY` from a summary; empty for a single task."""
    tasks = pl.col("task").n_unique().over("wrong_answer", "component")
    ranked = table.filter(pl.col("level") == "node", pl.col("rank").is_not_null()).filter(tasks > 1)
    group = ("task", "wrong_answer")
    everywhere = ("wrong_answer", "component")
    circuit_size = (CIRCUIT_SHARE * pl.len().over(group)).round()
    return (
        ranked.with_columns(
            share=pl.col("score") / pl.col("score").mean().over(group),
            in_circuit=pl.col("rank") <= circuit_size,
            n_tasks=pl.len().over(everywhere).cast(pl.Int64),
        )
        .with_columns(
            share_elsewhere=(pl.col("share").sum().over(everywhere) - pl.col("share")) / (pl.col("n_tasks") - 1),
            n_circuits=pl.col("in_circuit").sum().over(everywhere).cast(pl.Int64),
        )
        .with_columns(specificity=pl.col("share") / pl.col("share_elsewhere"))
        .select(SPECIFICITY.names())
    )
