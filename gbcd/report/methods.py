"""The table of all methods beside their cost, of the section about measured effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from gbcd.reduction.shard_values import Key
from gbcd.report.charts import Table, plain
from gbcd.report.findings import Measured

#: The effect that decides what is in the circuit.
TRUTH = "resample"

#: Columns of the table of methods.
FIGURES = {
    "spearman": "Spearman",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "cpr": "CPR",
    "cmd": "CMD",
    "stability": "stability",
}


def of_group(table: pl.DataFrame, group: Key) -> pl.DataFrame:
    """Rows of the group's gradient scores and of the task's baselines."""
    of_either = (pl.col("wrong_answer") == group.wrong_answer) | pl.col("wrong_answer").is_null()
    return table.filter(pl.col("task") == group.task, of_either)


def methods(measured: Measured, group: Key) -> Table:
    """Methods by rank correlation with the truth, best first."""
    rows = of_group(measured.figures, group).filter(pl.col("group") == "all")
    of_truth = rows.filter((pl.col("truth") == TRUTH) | pl.col("truth").is_null())
    figures = {(row["method"], row["figure"]): row for row in of_truth.iter_rows(named=True)}
    names = sorted(
        {method for method, _ in figures},
        key=lambda method: -(figures.get((method, "spearman"), {}).get("value") or -2.0),
    )
    lines = [
        [method, *(_figure(figures.get((method, figure))) for figure in FIGURES), plain(_cost(figures, method))]
        for method in names
    ]
    first = of_truth.row(0, named=True)
    caption = (
        f"{group.task}, {group.wrong_answer} and baselines, on {first['n_pairs']} pairs; 95 % intervals in brackets"
    )
    return Table(caption, ("method", *FIGURES.values(), "passes"), lines)


def _cost(figures: dict[tuple[str, str], dict[str, Any]], method: str) -> float | None:
    return next((row["cost"] for (name, _), row in figures.items() if name == method), None)


def _figure(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None or np.isnan(row["value"]):
        return "-"
    low, high = row["ci_low"], row["ci_high"]
    return f"{row['value']:.2f}" if low is None or high is None else f"{row['value']:.2f} [{low:.2f}, {high:.2f}]"
