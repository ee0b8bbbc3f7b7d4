"""What a run says at its end: what was found, where it lies, what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import polars as pl
from rich.console import Console

from gbcd.commands.result_table import show_results
from gbcd.pipeline import Run
from gbcd.printing import counted, duration, fact, failed_prompts
from gbcd.run.inputs import Inputs
from gbcd.run.results import prompts
from gbcd.run.store import Store
from gbcd.study import Study

#: Prompts of a task that are looked at for a counterfactual.
SAMPLE = 64


def closing_summary(runs: Sequence[Run], console: Console) -> None:
    """Print what was found, what is missing, and where it lies."""
    if summaries := [run.summary for run in runs if run.summary is not None]:
        show_results(pl.concat(summaries), console)
    for run in runs:
        for task in _short_tasks(run):
            fact(console, "Fewer", task)
        for reason in run.part.undefined.values():
            fact(console, "Left out", f"for {', '.join(run.part.tasks)}: {reason}")
        for record in run.given_up:
            fact(console, "Given up", record.message)
        failed_prompts(console, run.failed)
    fact(console, "Computed", _computed(runs))
    fact(console, "Results", ", ".join(run.out for run in runs))
    fact(console, "Names", "a3.h5 is head 5 of layer 3, m3 the MLP of layer 3; both count from 0")


def next_step(study: Study, runs: Sequence[Run], console: Console) -> None:
    """Print the command that comes after a run; nothing where nothing was computed."""
    if not any(run.summary is not None for run in runs):
        return
    if not any(_can_be_evaluated(run, task) for run in runs for task in run.plan.study.tasks):
        fact(console, "Next", "open the report. Effects cannot be measured: no prompt has a counterfactual")
        return
    own = "".join(f" --definitions {file}" for file in study.definitions)
    fact(console, "Next", f"gbcd evaluate {study.out}{own}   (what ablation says of it)")


def _can_be_evaluated(run: Run, task: str) -> bool:
    """True if its prompts have what effects are measured by: counterfactuals, or an output at every position."""
    store = Store(run.out)
    sample = Inputs(store, run.plan).sample(task, SAMPLE)
    found = prompts(run.out).filter(pl.col("task") == task).select(pl.col("answer_logit").is_null().all())
    return any(one.counterfactual_ids is not None for one in sample) or bool(found.collect().item())


def _computed(runs: Sequence[Run]) -> str:
    """Prompts, shards and time, in a line."""
    n_prompts, n_shards = sum(run.plan.n_prompts for run in runs), sum(len(run.plan.shards) for run in runs)
    missing = [run.plan.shards[shard] for run in runs for shard in run.missing]
    n_done = n_prompts - sum(shard.n_prompts for shard in missing) - sum(len(run.failed) for run in runs)
    found = sum(run.found for run in runs)
    before = f", {found:,} of them before" if found else ""
    shards = f"{n_shards - len(missing):,} of {counted(n_shards, 'shard')}{before}"
    taken = duration(sum(run.seconds for run in runs))
    return f"{n_done:,} of {counted(n_prompts, 'prompt')}, in {shards}; this run took {taken}"


def unfinished(runs: Sequence[Run]) -> str | None:
    """What is missing at the end, in a sentence; None if nothing is."""
    n_missing, n_shards = sum(len(run.missing) for run in runs), sum(len(run.plan.shards) for run in runs)
    said = [f"{n_missing:,} of {n_shards:,} shards are missing."] if n_missing else []
    for run in runs:
        if run.failed:
            said.append(f"{counted(len(run.failed), 'prompt')} failed; `gbcd verify --repair {run.out}` tries again.")
    return " ".join(said) or None


def _short_tasks(run: Run) -> Iterator[str]:
    """Tasks with fewer prompts than were asked for, because there are no more."""
    planned = Counter[str]()
    for shard in run.plan.shards:
        planned[shard.task] += shard.n_prompts
    for task, count in planned.items():
        if run.plan.study.prompts_per_task is not None and count < run.plan.study.prompts_per_task:
            yield f"{counted(count, 'prompt')} of {task}, which are all inputs of its model"
