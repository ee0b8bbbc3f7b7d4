"""What a run says at its end: what was found, where it lies, what to do next."""

from __future__ import annotations

import polars as pl
from rich.console import Console
from rich.table import Table

from gbcd.gradients.tables import STATISTICS
from gbcd.job.progress import duration
from gbcd.reduction.ranking import score_statistic
from gbcd.run import Run

#: Nodes listed per task and wrong answer.
TOP = 10


def closing_summary(run: Run, out: str, console: Console) -> None:
    """Print it."""
    if run.summary is not None:
        nodes = run.summary.filter((pl.col("level") == "node") & (pl.col("rank") <= TOP)).sort("rank")
        for (task, wrong_answer), rows in nodes.group_by("task", "wrong_answer", maintain_order=True):
            _show_ranking(f"{task}, {wrong_answer}", rows, console)
    console.print()
    for record in run.quarantined:
        console.print(f"shard {record.shard} was given up: {record.reason.strip().splitlines()[0]}", markup=False)
    done = len(run.plan.shards) - len(run.missing)
    prompts = run.plan.n_prompts - sum(run.plan.shards[shard].n_prompts for shard in run.missing)
    console.print(
        f"{prompts:,} of {run.plan.n_prompts:,} prompts, {done:,} of {len(run.plan.shards):,} shards "
        f"({run.found:,} from before), in {duration(run.seconds)}"
    )
    console.print(f"Results: {out}", markup=False, soft_wrap=True)
    console.print(
        f'Next:    python -c "import gbcd; print(gbcd.summary({out!r}).collect())"', markup=False, soft_wrap=True
    )


def _show_ranking(title: str, rows: pl.DataFrame, console: Console) -> None:
    statistic = score_statistic([name for name in STATISTICS if rows[f"{name}_mean"].is_not_null().any()])
    table = Table(box=None)
    table.add_column("rank", justify="right")
    table.add_column("node")
    table.add_column("score", justify="right")
    table.add_column("95 % interval", justify="right")
    for row in rows.iter_rows(named=True):
        low, high = row[f"{statistic}_ci_low"], row[f"{statistic}_ci_high"]
        interval = "" if low is None else f"{low:#.4g} to {high:#.4g}"
        table.add_row(str(row["rank"]), row["component"], f"{row['score']:#.4g}", interval)
    console.print(f"\n{title}: mean {statistic} over {rows['n'][0]:,} prompts", soft_wrap=True)
    console.print(table)
