"""Runs work of any kind to its end, in this process or on Ray: the one way in which gbcd computes in bulk.

stages -> shards that are not committed -> workers -> commits. The same call goes on where an earlier one stopped.

The driver gives shards to workers until every one is committed or given up. It holds no results, only which shards are
left, so its memory does not grow with the work, and it can be killed at any time. A shard that fails is tried again,
three times in all, and then recorded and left out while the rest goes on. A machine that is taken away counts for
nothing. Storage that fails is no fault of a shard: the run stops.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from gbcd.errors import Incomplete
from gbcd.run.commits import GivenUp, committed_ids, record_given_up
from gbcd.run.progress import Progress, ProgressDisplay
from gbcd.run.slices import WHOLE, Slice
from gbcd.run.store import StorageError, Store
from gbcd.run.work import Build, Outcome, Pool, Stage, Task, Workers
from gbcd.run.worker import LocalPool

#: Failures after which a shard is given up.
MAX_FAILURES = 3

#: Seconds after which the display is brought up to date though nothing happened.
TICK = 1.0


class Team:
    """The workers of one kind of work. They come up with the first shard that is not committed, no more of them than
    shards are left, and stay until the end of the context, from one call of `execute` to the next.
    """

    def __init__(self, location: str, build: Build, workers: Workers) -> None:
        """Nobody works yet."""
        self.location, self._build, self._workers = location, build, workers
        self._exits = ExitStack()
        self._pool: Pool | None = None
        self._n = 0

    def __enter__(self) -> Team:
        """Join Ray, where it is needed: it takes seconds to start."""
        if self._workers.n:
            from gbcd.run.ray_pool import connected

            self._exits.enter_context(connected(self._workers.n * self._workers.threads))
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop the workers."""
        self._stop()
        self._exits.close()

    def pool(self, n_shards: int) -> tuple[Pool, int]:
        """Workers for so many shards, and how many they are."""
        n = min(self._workers.n, n_shards)
        if self._pool is None or n > self._n:
            self._stop()
            self._pool, self._n = self._new(n), n
        return self._pool, self._n

    def _new(self, n: int) -> Pool:
        if not n:
            return LocalPool(self.location, self._build)
        from gbcd.run.ray_pool import RayPool

        return RayPool(absolute(self.location), self._workers._replace(n=n), self._build)

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None


def execute(team: Team, stages: Sequence[Stage], display: ProgressDisplay, part: Slice = WHOLE) -> list[GivenUp]:
    """Compute what is not committed yet.

    Args:
        team: who computes, and where.
        stages: what is wanted, in order.
        display: where progress is shown.
        part: of the last stage, what is computed. The stages before it are computed whole, those of this slice first:
            nobody waits for another slice, and what one has committed no other computes.

    Returns:
        Shards of the last stage that were given up.

    Raises:
        BadInput: a worker cannot do what was planned.
        Incomplete: workers or storage fail for good, or a stage cannot begin because a shard of the one before was
            given up. What is committed stays.
    """
    store = Store(team.location)
    try:
        wanted = [sorted(range(len(stage.sizes)), key=lambda shard: not part.has(shard)) for stage in stages]
        wanted[-1] = [shard for shard in wanted[-1] if part.has(shard)]
        n_left = max(len(_missing(store, *both)) for both in zip(stages, wanted, strict=True))
        if not n_left:
            return []
        (pool, n), given_up = team.pool(n_left), list[GivenUp]()
        for stage, shards in zip(stages, wanted, strict=True):
            given_up = StageDriver(store, stage, shards, pool, n, display).run()
            if given_up and stage is not stages[-1]:
                raise Incomplete(f"{stage.title.lower()} cannot be completed: {given_up[0].message}")
        return given_up
    except StorageError as error:
        raise Incomplete(str(error)) from error


def absolute(location: str) -> str:
    """A location that means the same in every folder; workers run in one of their own."""
    return location if "://" in location else os.fspath(Path(location).absolute())


class StageDriver:
    """One run over what is left of a stage."""

    def __init__(
        self,
        store: Store,
        stage: Stage,
        wanted: Sequence[int],
        pool: Pool,
        n_workers: int,
        display: ProgressDisplay,
    ) -> None:
        """Find out what is left of the shards `wanted`, in this order; `store` is that of the results folder."""
        shards = _missing(store, stage, wanted)
        self._store, self._stage, self._pool, self._display = store.below(stage.folder), stage, pool, display
        total = sum(stage.sizes[shard] for shard in wanted)
        self._left = deque(Task(stage.folder, shard) for shard in shards)
        self._failures = Counter[int]()
        self._in_flight = 0
        self._given_up: list[GivenUp] = []
        self._progress = Progress(
            title=stage.title,
            noun=stage.noun,
            shards_done=len(wanted) - len(shards),
            shards=len(wanted),
            done=total - sum(stage.sizes[shard] for shard in shards),
            total=total,
            n_workers=n_workers,
        )

    def run(self) -> list[GivenUp]:
        """Go on until nothing is left but what is given up, which is returned.

        Raises:
            BadInput: a worker cannot do what was planned.
            Incomplete: workers or storage fail for good; what is committed stays.
        """
        while self._left or self._in_flight:
            while self._left and self._pool.room() > 0:
                self._pool.submit(self._left.popleft())
                self._in_flight += 1
            self._show()
            for outcome in self._pool.wait(TICK, self._show):
                self._in_flight -= 1
                self._settle(outcome)
        self._show()
        return self._given_up

    def _settle(self, outcome: Outcome) -> None:
        task, now = outcome.task, self._progress
        if outcome.failure is None:
            done = now.done + self._stage.sizes[task.shard]
            self._progress = now._replace(shards_done=now.shards_done + 1, done=done)
            return
        if outcome.failure == "storage":
            raise Incomplete(f"results cannot be stored: {outcome.reason}")
        self._failures[task.shard] += outcome.failure != "node_lost"
        failures = self._failures[task.shard]
        if failures < MAX_FAILURES:
            self._left.append(task)
            self._progress = now._replace(retries=now.retries + 1)
            self._display.say(f"shard {task.shard}: {outcome.reason.strip().splitlines()[0].rstrip('.')}; trying again")
            return
        given_up = GivenUp(shard=task.shard, attempts=failures, reason=outcome.reason, at=datetime.now(UTC))
        record_given_up(self._store, given_up)
        self._given_up.append(given_up)
        self._progress = now._replace(given_up=len(self._given_up))
        self._display.say(given_up.message)

    def _show(self) -> None:
        done, ready = self._progress.done + self._pool.done(), self._pool.ready
        self._display.show(self._progress._replace(done=done, workers_ready=ready))


def _missing(store: Store, stage: Stage, wanted: Sequence[int]) -> list[int]:
    """Shards of `wanted` that are not committed; `store` is that of the results folder."""
    done = committed_ids(store.below(stage.folder))
    return [shard for shard in wanted if shard not in done]
