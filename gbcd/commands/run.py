"""`gbcd plan` and `gbcd run`: from studies to their plans, and on to their reports."""

from __future__ import annotations

import os
from typing import Any

import typer

from gbcd.commands import options
from gbcd.commands.report import write as write_report
from gbcd.commands.terminal import console, exit_status, hush_libraries
from gbcd.errors import INTERRUPTED, Incomplete
from gbcd.printing import counted, fact, line
from gbcd.run.slices import Slice, slice_here, slice_of
from gbcd.study import Study


@options.makes_studies
def plan(**flags: Any) -> None:
    """Draw and check the prompts of studies and store their plans, without computing."""
    with exit_status(resumes=True):
        asked = options.asked_studies(flags)
        hush_libraries()
        for one in asked:
            _plan(one)
        fact(console, "Next", "gbcd run with the same study")


@options.makes_studies
def run(workers: options.Workers = None, score: options.Score = None, part: options.Part = None, **flags: Any) -> None:
    """Run a study, or go on with one that was interrupted; several studies one after the other."""
    with exit_status(resumes=True):
        asked = options.asked_studies({**flags, "workers": workers})
        parts = [slice_of(part) if part is not None else slice_here(os.environ, one.compute.workers) for one in asked]
    hush_libraries()
    statuses = [_status(one, score, its) for one, its in zip(asked, parts, strict=True)]
    if worst := max(statuses):
        raise typer.Exit(worst)


def _plan(study: Study) -> None:
    from gbcd.run.planning import open_plan
    from gbcd.run.progress import ProgressDisplay

    with ProgressDisplay(console) as display:
        planned = open_plan(study, display.planning)
    settled, compute, shards = planned.plan.study, planned.plan.study.compute, planned.plan.shards
    fact(console, "Prompts", f"{planned.plan.n_prompts:,} for {settled.model}, centred by {settled.centering}")
    fact(console, "Wrong answer", ", ".join(settled.wrong_answers))
    fact(console, "Shards", f"{len(shards):,} of up to {counted(shards[0].n_prompts, 'prompt')}")
    fact(console, "Compute", f"on {compute.device}, in batches of {compute.batch_size:,}")
    for note in planned.notes:
        line(console, note)
    fact(console, "Plan", f"{planned.store.location}/plan.json")


def _status(study: Study, score: str | None, part: Slice) -> int:
    """The exit status of one study. Whatever becomes of it, the next one is run, unless a person interrupts."""
    try:
        with exit_status(resumes=True):
            _run(study, score, part)
    except typer.Exit as ended:
        if ended.exit_code == INTERRUPTED:
            raise
        return ended.exit_code
    return 0


def _run(study: Study, score: str | None, part: Slice) -> None:
    from gbcd.commands.closing import closing_summary, next_step, unfinished
    from gbcd.pipeline import run_study

    if part.origin:
        fact(
            console, "Slice", f"{part.number} of {part.of}, {part.origin} (--slice i/n chooses another, 1/1 the whole)"
        )
    result = run_study(study, console, score=score, part=part)
    closing_summary(result, console)
    if result.summary is not None:
        write_report(study.out)
    next_step(study, result, console)
    if left := unfinished(result):
        raise Incomplete(left)
