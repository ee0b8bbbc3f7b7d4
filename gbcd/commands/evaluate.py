"""`gbcd evaluate`: how well each score finds what ablation finds, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console

from gbcd.commands import options
from gbcd.commands.report import write as write_report
from gbcd.commands.step_display import shown_steps
from gbcd.commands.terminal import console, exit_status, hush_libraries
from gbcd.printing import counted, fact, heading, line, table
from gbcd.run.parts import folders

if TYPE_CHECKING:
    from gbcd.evaluation.evaluate import Evaluation

#: The truths that can be shown, best first: mean drop of the metric when a component is resampled from the
#: counterfactual, or, where there are none, when it has its mean.
TRUTHS = ("resample", "mean")


def evaluate(out: options.Results, pairs: options.Pairs = 128, definitions: options.Definitions = None) -> None:
    """Hold a finished study against what components do when they are ablated, and against other methods."""
    with exit_status():
        hush_libraries()
        from gbcd.evaluation.evaluate import evaluate as measure
        from gbcd.run.own_definitions import changed_since, import_definitions, read_definitions
        from gbcd.run.shards import read_plan
        from gbcd.run.store import Store

        files = read_definitions(definitions or ())
        import_definitions(files)
        for folder in folders(out):
            for file in changed_since(files, read_plan(Store(folder))):
                fact(console, "Beware", f"{file} has changed since the study was planned")
            with shown_steps(console) as watch:
                found = measure(folder, pairs, watch=watch)
            show_evaluation(found, folder, console)
        write_report(out)
        fact(console, "Next", f"gbcd.load_circuit({folders(out)[0]!r}) in Python is the circuit, for other tools")


def show_evaluation(evaluation: Evaluation, out: str, console: Console) -> None:
    """Print one table per task and wrong answer, best rank correlation first."""
    measured = set(evaluation.figures["truth"])
    truth = next(name for name in TRUTHS if name in measured)
    shown = evaluation.figures.filter(
        pl.col("truth") == truth, pl.col("group") == "all", pl.col("figure").is_in(["auroc", "spearman"])
    )
    for (task, wrong_answer), rows in shown.group_by("task", "wrong_answer", maintain_order=True):
        n_pairs, members, total = (rows[column][0] for column in ("n_pairs", "n_members", "n_components"))
        passes = evaluation.effects.filter(task=task, method=truth)["cost"][0]
        heading(
            console,
            f"{task}, {wrong_answer or 'baselines'}: against {truth} ablation on {counted(n_pairs, 'pair')} "
            f"({passes:.3g} forward passes over each), {members} of {total} components in the circuit",
        )
        table(console, ["score", "AUROC", "Spearman", "passes"], _methods(rows), words=["score"])
    console.print()
    for note in evaluation.notes:
        line(console, note)
    fact(console, "Results", f"{out}, tables and circuits")


def _methods(rows: pl.DataFrame) -> list[tuple[str, ...]]:
    by_method = {str(method): group for (method,), group in rows.group_by("method", maintain_order=True)}
    figures = {
        method: {row["figure"]: row for row in group.iter_rows(named=True)} for method, group in by_method.items()
    }
    best_first = sorted(figures, key=lambda method: -(figures[method]["spearman"]["value"] or -2.0))
    return [
        (method, _interval(found["auroc"]), _interval(found["spearman"]), f"{found['spearman']['cost'] or 0:g}")
        for method, found in ((method, figures[method]) for method in best_first)
    ]


def _interval(row: Mapping[str, Any]) -> str:
    value, low, high = (row[name] for name in ("value", "ci_low", "ci_high"))
    if value is None or value != value:
        return "-"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
