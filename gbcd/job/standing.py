"""How far a run is, from what lies in its folder: works from another terminal, another machine, and after its end."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from rich.console import Console

from gbcd.job.commits import Commit, read_commits
from gbcd.job.progress import duration
from gbcd.job.quarantine import Quarantine, quarantined
from gbcd.job.shards import Plan, read_plan
from gbcd.job.store import Store

#: Over which the present rate is measured.
WINDOW = timedelta(minutes=5)


class FolderStanding(NamedTuple):
    """What is committed.

    Attributes:
        plan: what is wanted.
        shards, prompts: how many are committed.
        statuses: rows (prompt and wrong answer) by status.
        quarantined: shards, and prompts of committed ones, that were given up, and that nobody has computed since.
        last: when the last shard was committed; None if none was.
        rate: prompts per second over the last minutes before that.
    """

    plan: Plan
    shards: int
    prompts: int
    statuses: dict[str, int]
    quarantined: list[Quarantine]
    last: datetime | None
    rate: float


def folder_standing(out: str) -> FolderStanding:
    """Read it.

    Raises:
        BadInput: `out` holds no plan.
        StorageError: it cannot be read.
    """
    store = Store(out)
    plan = read_plan(store)
    commits = read_commits(store)
    statuses = Counter[str]()
    for commit in commits:
        statuses.update(commit.statuses)
    return FolderStanding(
        plan=plan,
        shards=len(commits),
        prompts=sum(commit.n_prompts for commit in commits),
        statuses=dict(statuses),
        quarantined=quarantined(store),
        last=max((commit.committed_at for commit in commits), default=None),
        rate=_rate(commits),
    )


def show(standing: FolderStanding, console: Console) -> None:
    """Print it."""
    plan = standing.plan
    study = plan.study
    done = standing.prompts / plan.n_prompts
    lines = {
        "study": f"{', '.join(study.tasks)} on {study.model}; {', '.join(study.wrong_answers)}; seed {study.seed}",
        "prompts": f"{standing.prompts:,} of {plan.n_prompts:,} ({done:.0%})",
        "shards": f"{standing.shards:,} of {len(plan.shards):,}",
    }
    flagged = {name: count for name, count in standing.statuses.items() if name != "ok"}
    if flagged:
        lines["flagged"] = ", ".join(f"{count:,} rows {name}" for name, count in flagged.items())
    if standing.last:
        lines["last commit"] = f"{duration((datetime.now(UTC) - standing.last).total_seconds())} ago"
    if standing.rate and standing.shards < len(plan.shards):
        left = (plan.n_prompts - standing.prompts) / standing.rate
        lines["rate"] = f"{standing.rate:,.0f} prompts/s; {duration(left)} left while it runs at that rate"
    for name, line in lines.items():
        console.print(f"{name:<12} {line}", markup=False, soft_wrap=True)
    for record in standing.quarantined:
        console.print(f"{'quarantined':<12} {record.in_words}", markup=False, soft_wrap=True)


def _rate(commits: list[Commit]) -> float:
    """Prompts per second between the first and the last commit of the last minutes of work."""
    if not commits:
        return 0.0
    ordered = sorted(commits, key=lambda commit: commit.committed_at)
    recent = [commit for commit in ordered if ordered[-1].committed_at - commit.committed_at <= WINDOW]
    seconds = (recent[-1].committed_at - recent[0].committed_at).total_seconds()
    return sum(commit.n_prompts for commit in recent[1:]) / seconds if seconds else 0.0
