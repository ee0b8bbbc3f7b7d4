"""How far a run is, from what lies in its folder: works from another terminal, another machine, and after its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from gbcd.run.commits import Commit, read_commits
from gbcd.run.given_up import GivenUp, given_up
from gbcd.run.results import failed_prompts
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store

#: Over which the present rate is measured.
WINDOW = timedelta(minutes=5)


class FolderStatus(NamedTuple):
    """What is committed.

    Attributes:
        plan: what is wanted.
        shards, prompts: how many are committed.
        statuses: rows (prompt and wrong answer) by status.
        failed: prompts that have no values, with the reason.
        given_up: shards that are missing because they failed again and again.
        last: when the last shard was committed; None if none was.
        rate: prompts per second over the last minutes before that.
    """

    plan: Plan
    shards: int
    prompts: int
    statuses: dict[str, int]
    failed: dict[str, str]
    given_up: list[GivenUp]
    last: datetime | None
    rate: float


def folder_status(out: str) -> FolderStatus:
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
    return FolderStatus(
        plan=plan,
        shards=len(commits),
        prompts=n_prompts(plan, commits),
        statuses=dict(statuses),
        failed=failed_prompts(store, commits),
        given_up=given_up(store),
        last=max((commit.committed_at for commit in commits), default=None),
        rate=_rate(plan, commits),
    )


def n_prompts(plan: Plan, commits: Iterable[Commit]) -> int:
    """Prompts of committed shards."""
    return sum(plan.shards[commit.shard].n_prompts for commit in commits)


def _rate(plan: Plan, commits: list[Commit]) -> float:
    """Prompts per second between the first and the last commit of the last minutes of work."""
    if not commits:
        return 0.0
    ordered = sorted(commits, key=lambda commit: commit.committed_at)
    recent = [commit for commit in ordered if ordered[-1].committed_at - commit.committed_at <= WINDOW]
    seconds = (recent[-1].committed_at - recent[0].committed_at).total_seconds()
    return n_prompts(plan, recent[1:]) / seconds if seconds else 0.0
