"""`gbcd status`: how far a run is, from another terminal, another machine, and after its end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status
from gbcd.printing import counted, duration, fact, failed_prompts

if TYPE_CHECKING:
    from gbcd.run.status import FolderStatus


def status(out: options.Results) -> None:
    """Say how far a run is; works while it runs, from anywhere that reaches its folder."""
    with exit_status():
        from gbcd.run.status import folder_status

        show(folder_status(out), console)


def show(found: FolderStatus, console: Console) -> None:
    """Print it."""
    plan = found.plan
    study = plan.study
    done = found.prompts / plan.n_prompts
    said = f"{', '.join(plan.tasks)} on {study.model}; {', '.join(study.wrong_answers)}; seed {study.seed}"
    fact(console, "Study", said)
    fact(console, "Prompts", f"{found.prompts:,} of {plan.n_prompts:,} ({done:.0%})")
    fact(console, "Shards", f"{found.shards:,} of {len(plan.shards):,}")
    flagged = {name: count for name, count in found.statuses.items() if name != "ok"}
    if flagged:
        fact(console, "Flagged", ", ".join(f"{counted(count, 'row')} {name}" for name, count in flagged.items()))
    if found.last:
        fact(console, "Last commit", f"{duration((datetime.now(UTC) - found.last).total_seconds())} ago")
    if found.rate and found.shards < len(plan.shards):
        left = (plan.n_prompts - found.prompts) / found.rate
        fact(console, "Rate", f"{found.rate:,.0f} prompts/s at last; at that rate {duration(left)} left")
    for record in found.given_up:
        fact(console, "Given up", record.message)
    failed_prompts(console, found.failed)
