"""How far a run is, from what lies in its folder: works from another terminal, another machine, and after its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from gbcd.run.commits import Commit, GivenUp, read_commits, read_given_up
from gbcd.run.results import failed_prompts
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store

#: Over which the present rate is measured.
WINDOW = timedelta(minutes=5)


@dataclass(frozen=True)
class FolderStatus:
    """What is committed.

    Attributes:
        out: where the results lie.
        plan: what is wanted.
        commits: of shards of prompts, in order.
        failed: prompts of committed shards that have no values, with the reason.
        given_up: shards that are missing because they failed again and again, with the reason.
    """

    out: str
    plan: Plan
    commits: tuple[Commit, ...]
    failed: dict[str, str]
    given_up: tuple[GivenUp, ...]

    @property
    def left(self) -> tuple[int, ...]:
        """Shards that are not committed."""
        done = {commit.shard for commit in self.commits}
        return tuple(shard.id for shard in self.plan.shards if shard.id not in done)

    @property
    def n_prompts(self) -> int:
        """Prompts of committed shards."""
        return self.plan.n_prompts_of(commit.shard for commit in self.commits)

    @property
    def statuses(self) -> Counter[str]:
        """Rows (prompt and wrong answer) by status."""
        return sum((Counter(commit.statuses) for commit in self.commits), Counter[str]())

    @property
    def last(self) -> datetime | None:
        """When the last shard was committed; None if none was."""
        return max((commit.committed_at for commit in self.commits), default=None)

    @property
    def rate(self) -> float:
        """Prompts per second between the first and the last commit of the last minutes of work."""
        times = {commit.shard: commit.committed_at for commit in self.commits}
        recent = sorted((at, shard) for shard, at in times.items() if max(times.values()) - at <= WINDOW)
        seconds = (recent[-1][0] - recent[0][0]).total_seconds() if recent else 0.0
        return self.plan.n_prompts_of(shard for _, shard in recent[1:]) / seconds if seconds else 0.0


def folder_status(out: str) -> FolderStatus:
    """Read it.

    Raises:
        BadInput: `out` holds no plan.
        StorageError: it cannot be read.
    """
    store = Store(out)
    plan, commits = read_plan(store), tuple(read_commits(store))
    return FolderStatus(store.location, plan, commits, failed_prompts(store, commits), tuple(read_given_up(store)))
