"""What `gbcd evaluate` says: how well each score finds what ablation finds, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from gbcd.evaluation.evaluate import Evaluation
from gbcd.job.progress import show_table

#: The truths that can be shown, best first: mean drop of the metric when a component is resampled from the
#: counterfactual, or, where there are none, when it has its mean.
TRUTHS = ("resample", "mean")


def show_evaluation(evaluation: Evaluation, out: str, console: Console) -> None:
    """Print one table per task and wrong answer, best rank correlation first."""
    measured = set(evaluation.figures["truth"])
    truth = next(name for name in TRUTHS if name in measured)
    shown = evaluation.figures.filter(
        pl.col("truth") == truth, pl.col("group") == "all", pl.col("figure").is_in(["auroc", "spearman"])
    )
    for (task, wrong_answer), rows in shown.group_by("task", "wrong_answer", maintain_order=True):
        name = f"{task}, {wrong_answer}" if wrong_answer else f"{task}, baselines"
        n_pairs, members, total = (rows[column][0] for column in ("n_pairs", "n_members", "n_components"))
        passes = evaluation.effects.filter(task=task, method=truth)["cost"][0]
        console.print(
            f"\n{name}: against {truth} ablation on {n_pairs} pairs ({passes:.3g} forward passes over each), "
            f"{members} of {total} components in the circuit",
            soft_wrap=True,
        )
        show_table(_methods(rows), console)
    for note in evaluation.notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"\nTables and pictures: {out}", markup=False, soft_wrap=True)


def _methods(rows: pl.DataFrame) -> Table:
    table = Table(box=None)
    table.add_column("score", no_wrap=True)
    for column in ("AUROC", "Spearman", "passes"):
        table.add_column(column, justify="right")
    by_method = {str(method): group for (method,), group in rows.group_by("method", maintain_order=True)}
    figures = {
        method: {row["figure"]: row for row in group.iter_rows(named=True)} for method, group in by_method.items()
    }
    for method in sorted(figures, key=lambda method: -(figures[method]["spearman"]["value"] or -2.0)):
        auroc, spearman = figures[method]["auroc"], figures[method]["spearman"]
        table.add_row(method, _interval(auroc), _interval(spearman), f"{spearman['cost'] or 0:g}")
    return table


def _interval(row: Mapping[str, Any]) -> str:
    value, low, high = (row[name] for name in ("value", "ci_low", "ci_high"))
    if value is None or value != value:
        return "-"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
