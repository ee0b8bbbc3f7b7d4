"""What a run says at its end: what was found, where it lies, what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

import polars as pl
from rich.console import Console

from gbcd import tasks
from gbcd.analysis.edges import read_neurons
from gbcd.commands.result_table import show_neurons, show_results
from gbcd.pipeline import Run
from gbcd.printing import counted, duration, fact, failed_prompts
from gbcd.run.inputs import Inputs
from gbcd.run.results import prompts
from gbcd.run.store import Store
from gbcd.study import Study

#: Prompts of a task that are looked at for a counterfactual.
SAMPLE = 64


def closing_summary(run: Run, console: Console) -> None:
    """Print what was found, what is missing, and where it lies."""
    if run.summary is not None:
        show_results(run.summary, console)
        if (neurons := read_neurons(Store(run.out))) is not None:
            show_neurons(neurons, console)
    for task in _short_tasks(run):
        fact(console, "Fewer", task)
    failed_prompts(console, run.failed)
    fact(console, "Computed", _computed(run))
    if run.left_to_others:
        left = f"{counted(len(run.left_to_others), 'shard')} of other slices are not committed yet"
        fact(
            console, "Slice", f"{run.part}; {left}. The last one writes summary and report, or gbcd run without --slice"
        )
    fact(console, "Results", run.out)
    fact(console, "Names", "a3.h5 is head 5 of layer 3, m3 the MLP of layer 3; both count from 0")


def next_step(study: Study, run: Run, console: Console) -> None:
    """Print the command that comes after a run; nothing where nothing was computed."""
    if run.summary is None:
        return
    if not any(_can_be_evaluated(run, task) for task in run.plan.tasks):
        fact(console, "Next", "open the report. Effects cannot be measured: no prompt has a counterfactual")
        return
    own = "".join(f" --definitions {quote(file)}" for file in study.definitions)
    fact(console, "Next", f"gbcd evaluate {quote(study.out)}{own}   (what ablation says of it)")


def _can_be_evaluated(run: Run, task: str) -> bool:
    """True if its prompts have what effects are measured by: counterfactuals, or an output at every position."""
    store = Store(run.out)
    sample = Inputs(store, run.plan).sample(task, SAMPLE)
    found = prompts(run.out).filter(pl.col("task") == task).select(pl.col("answer_logit").is_null().all())
    return any(one.counterfactual_ids is not None for one in sample) or bool(found.collect().item())


def _computed(run: Run) -> str:
    """Prompts, shards and time, in a line."""
    n_prompts, n_shards = run.plan.n_prompts, len(run.plan.shards)
    missing = [*run.missing, *run.left_to_others]
    n_done = n_prompts - run.plan.n_prompts_of(missing) - len(run.failed)
    before = f", {run.found:,} of them before" if run.found else ""
    shards = f"{n_shards - len(missing):,} of {counted(n_shards, 'shard')}{before}"
    return f"{n_done:,} of {counted(n_prompts, 'prompt')}, in {shards}; this run took {duration(run.seconds)}"


def unfinished(run: Run) -> str | None:
    """What is missing at the end, in a sentence; None if nothing is."""
    said = [f"{len(run.missing):,} of {len(run.plan.shards):,} shards are missing."] if run.missing else []
    if run.failed:
        again = f"gbcd verify --repair {quote(run.out)}"
        said.append(f"{counted(len(run.failed), 'prompt')} failed; `{again}` tries again.")
    return " ".join(said) or None


def _short_tasks(run: Run) -> Iterator[str]:
    """Finite tasks with fewer prompts than were asked for, because there are no more."""
    asked = run.plan.study.prompts_per_task
    for task in run.plan.study.tasks:
        count = sum(shard.n_prompts for shard in run.plan.shards if shard.task == task)
        if asked is not None and count < asked and tasks.get(task).is_finite:
            yield f"{counted(count, 'prompt')} of {task}, which are all inputs of its model"
