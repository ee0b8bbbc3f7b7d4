"""What a run says at its end: what was found, where it lies, what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import polars as pl
from rich.console import Console
from rich.table import Table

from gbcd.job.progress import duration, show_table
from gbcd.reduction.ranking import score_statistic
from gbcd.reduction.shard_values import SUMMARISED
from gbcd.run import Run

#: Nodes listed per task and wrong answer.
TOP = 10

#: Beyond as many tasks and wrong answers, each has a line instead of a table.
MAX_TABLES = 8


def closing_summary(runs: Sequence[Run], out: str, console: Console) -> None:
    """Print it."""
    rankings = [ranking for run in runs if run.summary is not None for ranking in _rankings(run.summary)]
    show = _show_ranking if len(rankings) <= MAX_TABLES else _show_line
    for title, rows in rankings:
        show(title, rows, console)
    console.print()
    for run in runs:
        for task in _short_tasks(run):
            console.print(task, markup=False, soft_wrap=True)
        for reason in run.part.undefined.values():
            console.print(f"left out for {', '.join(run.part.tasks)}: {reason}", markup=False, soft_wrap=True)
        for record in run.quarantined:
            console.print(record.in_words, markup=False, soft_wrap=True)
    n_prompts, n_shards = sum(run.plan.n_prompts for run in runs), sum(len(run.plan.shards) for run in runs)
    missing = [run.plan.shards[shard] for run in runs for shard in run.missing]
    console.print(
        f"{n_prompts - sum(shard.n_prompts for shard in missing):,} of {n_prompts:,} prompts, "
        f"{n_shards - len(missing):,} of {n_shards:,} shards ({sum(run.found for run in runs):,} from before), "
        f"in {duration(sum(run.seconds for run in runs))}"
    )
    folders = ", ".join(run.out for run in runs)
    console.print(f"Results: {folders}", markup=False, soft_wrap=True)
    console.print("Names:   a3.h5 is head 5 of layer 3, m3 the MLP of layer 3; both count from 0", markup=False)
    console.print(f"Next:    gbcd evaluate {out}   (what ablation says of it)", markup=False, soft_wrap=True)


def unfinished(runs: Sequence[Run]) -> str | None:
    """What is missing at the end, in a sentence; None if nothing is."""
    n_missing, n_shards = sum(len(run.missing) for run in runs), sum(len(run.plan.shards) for run in runs)
    n_failed = sum(len(record.prompts) for run in runs for record in run.quarantined)
    said = [f"{n_missing} of {n_shards} shards are missing."] if n_missing else []
    said += [f"{n_failed} prompts have no values."] if n_failed else []
    return " ".join(said) or None


def _rankings(summary: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    nodes = summary.filter((pl.col("level") == "node") & (pl.col("rank") <= TOP)).sort("rank")
    for (task, wrong_answer), rows in nodes.group_by("task", "wrong_answer", maintain_order=True):
        yield f"{task}, {wrong_answer}", rows


def _short_tasks(run: Run) -> Iterator[str]:
    """Tasks with fewer prompts than were asked for, because there are no more."""
    planned = Counter[str]()
    for shard in run.plan.shards:
        planned[shard.task] += shard.n_prompts
    for task, count in planned.items():
        if run.plan.study.prompts_per_task is not None and count < run.plan.study.prompts_per_task:
            yield f"{task}: {count:,} prompts, which are all inputs of its model"


def _show_line(title: str, rows: pl.DataFrame, console: Console) -> None:
    console.print(f"{title}: {', '.join(rows['component'])}", markup=False, soft_wrap=True)


def _show_ranking(title: str, rows: pl.DataFrame, console: Console) -> None:
    statistic = score_statistic([name for name in SUMMARISED if rows[f"{name}_mean"].is_not_null().any()])
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
    show_table(table, console)
