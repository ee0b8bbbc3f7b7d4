"""`gbcd status`: how far a run is, from another terminal, another machine, and after its end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status
from gbcd.printing import counted, duration, fact
from gbcd.run.parts import folders

if TYPE_CHECKING:
    from gbcd.run.standing import FolderStanding


def status(out: options.Results) -> None:
    """Say how far a run is; works while it runs, from anywhere that reaches its folder."""
    with exit_status():
        from gbcd.run.standing import folder_standing

        for folder in folders(out):
            show(folder_standing(folder), console)


def show(standing: FolderStanding, console: Console) -> None:
    """Print it."""
    plan = standing.plan
    study = plan.study
    done = standing.prompts / plan.n_prompts
    said = f"{', '.join(study.tasks)} on {study.model}; {', '.join(study.wrong_answers)}; seed {study.seed}"
    fact(console, "Study", said)
    fact(console, "Prompts", f"{standing.prompts:,} of {plan.n_prompts:,} ({done:.0%})")
    fact(console, "Shards", f"{standing.shards:,} of {len(plan.shards):,}")
    flagged = {name: count for name, count in standing.statuses.items() if name != "ok"}
    if flagged:
        fact(console, "Flagged", ", ".join(f"{counted(count, 'row')} {name}" for name, count in flagged.items()))
    if standing.last:
        fact(console, "Last commit", f"{duration((datetime.now(UTC) - standing.last).total_seconds())} ago")
    if standing.rate and standing.shards < len(plan.shards):
        left = (plan.n_prompts - standing.prompts) / standing.rate
        fact(console, "Rate", f"{standing.rate:,.0f} prompts/s at last; at that rate {duration(left)} left")
    for record in standing.quarantined:
        fact(console, "Quarantined", record.in_words)
