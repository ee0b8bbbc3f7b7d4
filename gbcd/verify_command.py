"""`gbcd verify`: read everything back, and compute again what is bad or missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gbcd import cli_options as options
from gbcd.errors import Incomplete
from gbcd.job.parts import folders
from gbcd.terminal import console, exit_status, hush_libraries, say

if TYPE_CHECKING:
    from gbcd.job.verification import Verification


def verify(
    out: options.Results,
    repair: Annotated[bool, typer.Option("--repair", help="Compute again what is damaged or missing.")] = False,
    workers: options.Workers = None,
) -> None:
    """Read everything back: every prompt exactly once, every byte as committed. Status 0 if so, else 3."""
    with exit_status():
        from gbcd.job.verification import verify as examine

        found = {folder: examine(folder) for folder in folders(out)}
        for folder, one in found.items():
            _show(one)
            if repair and not one.is_sound:
                found[folder] = _repaired(folder, one, workers)
        if not all(one.is_sound for one in found.values()):
            raise Incomplete(
                "the results are not whole; `gbcd verify --repair` computes exactly what is bad or missing."
            )


def _repaired(folder: str, found: Verification, workers: int | None) -> Verification:
    from gbcd.job.planning import study_of
    from gbcd.job.verification import forget, verify
    from gbcd.run import run_study

    hush_libraries()
    forget(folder, found)
    run_study(study_of(found.plan, folder, workers), console)
    again = verify(folder)
    _show(again)
    return again


def _show(found: Verification) -> None:
    for where, problem in [*found.common.items(), *((f"shard {shard}", text) for shard, text in found.bad.items())]:
        say(f"bad      {where}: {problem}")
    for shard, prompts in found.failed.items():
        say(f"failed   shard {shard} has no values for {', '.join(prompts)}; `gbcd status` says why")
    if found.missing:
        say(f"missing  {len(found.missing):,} of {len(found.plan.shards):,} shards")
    if found.is_sound:
        say(f"sound    {found.plan.n_prompts:,} prompts, each exactly once; {found.n_bytes:,} bytes read and compared")
    if found.leftovers:
        say(f"         {found.leftovers:,} files that no record names; harmless, and `gbcd compact` removes old ones")
