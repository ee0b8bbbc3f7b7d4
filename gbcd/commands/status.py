"""`gbcd status` and `gbcd verify`: how far a run is, and whether all that it stored is whole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status, hush_libraries
from gbcd.errors import BadInput, Incomplete
from gbcd.printing import counted, duration, fact, failed_prompts

if TYPE_CHECKING:
    from gbcd.run.status import FolderStatus
    from gbcd.run.verification import Verification
    from gbcd.study import Study


def status(out: options.Results) -> None:
    """Say how far a run is; works while it runs, from anywhere that reaches its folder."""
    with exit_status():
        from gbcd.run.status import folder_status

        show_status(folder_status(out), console)


def show_status(found: FolderStatus, console: Console) -> None:
    """Print it."""
    plan = found.plan
    study, done = plan.study, found.n_prompts
    said = f"{', '.join(plan.tasks)} on {study.model}; {', '.join(study.wrong_answers)}; seed {study.seed}"
    fact(console, "Study", said)
    fact(console, "Prompts", f"{done:,} of {plan.n_prompts:,} ({done / plan.n_prompts:.0%})")
    fact(console, "Shards", f"{len(found.commits):,} of {len(plan.shards):,}")
    if flagged := {name: count for name, count in found.statuses.items() if name != "ok"}:
        rows = ", ".join(f"{counted(count, 'row')} {name}" for name, count in flagged.items())
        fact(console, "Flagged", f"{rows}; a prompt has a row for each wrong answer")
    if found.last:
        fact(console, "Last commit", f"{duration((datetime.now(UTC) - found.last).total_seconds())} ago")
    if found.rate and len(found.commits) < len(plan.shards):
        left = duration((plan.n_prompts - done) / found.rate)
        fact(console, "Rate", f"{found.rate:,.0f} prompts/s at last; at that rate {left} left")
    for record in found.given_up:
        fact(console, "Given up", record.message)
    failed_prompts(console, found.failed)


def verify(
    out: options.Results,
    repair: Annotated[bool, typer.Option("--repair", help="Compute again what is damaged or missing.")] = False,
    workers: options.Workers = None,
    definitions: options.Definitions = None,
) -> None:
    """Read everything back: every prompt exactly once, every byte as committed. Status 0 if so, else 3."""
    with exit_status(resumes=True):
        from gbcd.run import verification
        from gbcd.run.inputs import LOST

        found = verification.verify(out)
        _show(found)
        if not found.has_prompts:
            raise BadInput(f"the study's prompts are gone or damaged; {LOST}")
        if repair and not found.is_sound:
            from gbcd.pipeline import run_study

            hush_libraries()
            verification.forget(out, found)
            run_study(again(found.plan.study, out, workers, definitions or ()), console)
            found = verification.verify(out)
            _show(found)
        if not found.is_sound:
            raise Incomplete(
                "the results are not whole; `gbcd verify --repair` computes exactly what is bad or missing."
            )


def again(study: Study, out: str, workers: int | None, definitions: Sequence[str]) -> Study:
    """A planned study, to be computed in `out` by as many `workers`; its definitions may lie elsewhere now."""
    compute = study.compute if workers is None else study.compute.model_copy(update={"workers": workers})
    changed = {"out": out, "compute": compute, "definitions": tuple(definitions) or study.definitions}
    return study.model_copy(update=changed)


def _show(found: Verification) -> None:
    for where, problem in found.bad:
        fact(console, "Bad", f"{where}: {problem}")
    failed_prompts(console, found.failed)
    for folder, stage in found.stages.items():
        if stage.missing:
            fact(console, "Missing", f"{counted(len(stage.missing), 'shard')} of {folder or 'prompts'}")
    if found.is_sound:
        prompts, read = counted(found.plan.n_prompts, "prompt"), counted(found.n_bytes, "byte")
        fact(console, "Sound", f"{prompts}, each exactly once; {read} read and compared")
    if found.orphans:
        fact(console, "Orphaned", f"{counted(found.orphans, 'file')} of attempts that never committed: harmless")
