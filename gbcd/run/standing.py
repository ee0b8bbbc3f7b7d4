"""How far a run is, from what lies in its folder: works from another terminal, another machine, and after its end."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import NamedTuple

from gbcd.run.commits import Commit, read_commits
from gbcd.run.quarantine import Quarantine, quarantined
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store

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


def _rate(commits: list[Commit]) -> float:
    """Prompts per second between the first and the last commit of the last minutes of work."""
    if not commits:
        return 0.0
    ordered = sorted(commits, key=lambda commit: commit.committed_at)
    recent = [commit for commit in ordered if ordered[-1].committed_at - commit.committed_at <= WINDOW]
    seconds = (recent[-1].committed_at - recent[0].committed_at).total_seconds()
    return sum(commit.n_prompts for commit in recent[1:]) / seconds if seconds else 0.0
