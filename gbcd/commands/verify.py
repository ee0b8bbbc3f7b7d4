"""`gbcd verify`: read everything back, and compute again what is bad or missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status, hush_libraries, say
from gbcd.errors import BadInput, Incomplete
from gbcd.printing import counted, failed_prompts

if TYPE_CHECKING:
    from gbcd.run.verification import Verification
    from gbcd.study import Study


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
            _repair(out, found, workers, definitions or ())
            found = verification.verify(out)
            _show(found)
        if not found.is_sound:
            raise Incomplete(
                "the results are not whole; `gbcd verify --repair` computes exactly what is bad or missing."
            )


def _repair(out: str, found: Verification, workers: int | None, definitions: Sequence[str]) -> None:
    from gbcd.pipeline import run_study
    from gbcd.run.verification import forget

    hush_libraries()
    forget(out, found)
    run_study(again(found.plan.study, out, workers, definitions), console)


def again(study: Study, out: str, workers: int | None, definitions: Sequence[str]) -> Study:
    """A planned study, to be computed in `out` by as many `workers`; its definitions may lie elsewhere now."""
    compute = study.compute if workers is None else study.compute.model_copy(update={"workers": workers})
    changed = {"out": out, "compute": compute, "definitions": tuple(definitions) or study.definitions}
    return study.model_copy(update=changed)


def _show(found: Verification) -> None:
    bad = [
        *found.common.items(),
        *((f"mean activations of {found.plan.tasks[task]}", text) for task, text in found.means.bad.items()),
        *((f"shard {shard}", text) for shard, text in found.norms.bad.items()),
        *((f"{folder}, shard {n}", text) for folder, one in found.evaluations.items() for n, text in one.bad.items()),
    ]
    for where, problem in bad:
        say("Bad", f"{where}: {problem}")
    failed_prompts(console, found.failed)
    if found.norms.missing:
        say("Missing", f"{len(found.norms.missing):,} of {counted(len(found.plan.shards), 'shard')}")
    if found.is_sound:
        read = counted(found.n_bytes, "byte")
        say("Sound", f"{counted(found.plan.n_prompts, 'prompt')}, each exactly once; {read} read and compared")
    if found.orphans:
        say("Orphaned", f"{counted(found.orphans, 'file')} of attempts that never committed: harmless")
