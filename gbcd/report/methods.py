"""The table of all methods beside their cost, of the section about measured effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from gbcd.analysis.shard_values import Key
from gbcd.report.charts import Table, plain
from gbcd.report.findings import Measured
from gbcd.report.words import method

#: Effects that decide what is in the circuit: the first that was measured.
TRUTHS = ("resample", "mean", "zero")

#: Columns of the table of methods.
FIGURES = {
    "spearman": "Spearman",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "cpr": "CPR",
    "cmd": "CMD",
    "stability": "stability",
}


#: Those with intervals; the table would not fit with all, and they are in `evaluation.parquet`.
WITH_INTERVAL = ("spearman", "auroc", "auprc")


def truth_of(measured: Measured, task: str) -> str:
    """The effect that decides what is in the circuit of a task that was evaluated."""
    found = measured.effects.filter(pl.col("task") == task)["method"].unique().to_list()
    return next(name for name in TRUTHS if name in found)


def effects_of(measured: Measured, task: str, method: str) -> pl.DataFrame:
    """Rows of one kind of effect on a task, with `effect`, `low` and `high` in per cent of the gap."""
    low, high = (100 * pl.col(end) / pl.col("gap") for end in ("ci_low", "ci_high"))
    return measured.effects.filter(pl.col("task") == task, pl.col("method") == method).with_columns(
        effect=100 * pl.col("value") / pl.col("gap"),
        low=pl.min_horizontal(low, high),
        high=pl.max_horizontal(low, high),
    )


def of_group(table: pl.DataFrame, group: Key) -> pl.DataFrame:
    """Rows of the group's gradient scores, and of what depends on the task alone."""
    of_either = (pl.col("wrong_answer") == group.wrong_answer) | pl.col("wrong_answer").is_null()
    return table.filter(pl.col("task") == group.task, of_either)


def methods(measured: Measured, group: Key, score: str) -> Table:
    """Methods by rank correlation with the truth, best first; `score` is the one that ranks."""
    rows = of_group(measured.figures, group).filter(pl.col("group") == "all")
    of_truth = rows.filter((pl.col("truth") == truth_of(measured, group.task)) | pl.col("truth").is_null())
    figures = {(row["method"], row["figure"]): row for row in of_truth.iter_rows(named=True)}
    names = sorted({name for name, _ in figures}, key=lambda name: (_correlation(figures, name), name))
    lines = [
        [
            method(name) + (" ◀" if name == score else ""),
            *(_figure(figures.get((name, figure)), figure in WITH_INTERVAL) for figure in FIGURES),
            plain(_cost(figures, name)),
        ]
        for name in names
    ]
    first = of_truth.row(0, named=True)
    caption = (
        f"{group.task}: scores of {group.wrong_answer} and baselines, on {first['n_pairs']} prompts; "
        "95 % intervals in brackets are over prompts, not over templates or components; ◀ the score that ranks"
    )
    columns = ("method", *FIGURES.values(), "passes")
    return Table(caption, columns, lines, tuple(range(1, len(columns))))


def _correlation(figures: dict[tuple[str, str], dict[str, Any]], wanted: str) -> float:
    """Negative, so that the best comes first; what is not defined comes last."""
    value = figures.get((wanted, "spearman"), {}).get("value")
    return 2.0 if value is None or np.isnan(value) else -value


def _cost(figures: dict[tuple[str, str], dict[str, Any]], wanted: str) -> float | None:
    return next((row["cost"] for (name, _), row in figures.items() if name == wanted), None)


def _figure(row: dict[str, Any] | None, with_interval: bool) -> str:
    if row is None or row["value"] is None or np.isnan(row["value"]):
        return "-"
    low, high = row["ci_low"], row["ci_high"]
    is_bounded = with_interval and low is not None and high is not None
    return f"{row['value']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if is_bounded else "")
