"""`gbcd verify`: read everything back, and compute again what is bad or missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status, hush_libraries, say
from gbcd.errors import Incomplete
from gbcd.printing import counted, failed_prompts
from gbcd.run.parts import folders

if TYPE_CHECKING:
    from gbcd.run.verification import Verification


def verify(
    out: options.Results,
    repair: Annotated[bool, typer.Option("--repair", help="Compute again what is damaged or missing.")] = False,
    workers: options.Workers = None,
    definitions: options.Definitions = None,
) -> None:
    """Read everything back: every prompt exactly once, every byte as committed. Status 0 if so, else 3."""
    with exit_status(resumes=True):
        from gbcd.run import verification

        found = {folder: verification.verify(folder) for folder in folders(out)}
        for folder, one in found.items():
            _show(one)
            if repair and not one.is_sound:
                _repair(folder, one, workers, definitions or ())
                found[folder] = verification.verify(folder)
                _show(found[folder])
        if not all(one.is_sound for one in found.values()):
            raise Incomplete(
                "the results are not whole; `gbcd verify --repair` computes exactly what is bad or missing."
            )


def _repair(folder: str, found: Verification, workers: int | None, definitions: Sequence[str]) -> None:
    from gbcd.pipeline import run_study
    from gbcd.run.planning import study_of
    from gbcd.run.verification import forget

    hush_libraries()
    forget(folder, found)
    run_study(study_of(found.plan, folder, workers, definitions), console)


def _show(found: Verification) -> None:
    bad = [
        *found.common.items(),
        *((f"mean activations of {found.plan.study.tasks[task]}", text) for task, text in found.means.bad.items()),
        *((f"shard {shard}", text) for shard, text in found.norms.bad.items()),
    ]
    for where, problem in bad:
        say("Bad", f"{where}: {problem}")
    failed_prompts(console, found.failed)
    if found.norms.missing:
        say("Missing", f"{len(found.norms.missing):,} of {counted(len(found.plan.shards), 'shard')}")
    if found.is_sound:
        read = counted(found.means.n_bytes + found.norms.n_bytes, "byte")
        say("Sound", f"{counted(found.plan.n_prompts, 'prompt')}, each exactly once; {read} read and compared")
    if found.orphans:
        say("Orphaned", f"{counted(found.orphans, 'file')} of attempts that never committed: harmless")
