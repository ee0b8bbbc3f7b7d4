"""Runs work of any kind to its end, in this process or on Ray: the one way in which gbcd computes in bulk.

stages -> shards that are not committed -> workers -> commits. The same call goes on where an earlier one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from gbcd.errors import Incomplete
from gbcd.run.driver import StageDriver, missing
from gbcd.run.given_up import GivenUp
from gbcd.run.progress import ProgressDisplay
from gbcd.run.store import StorageError, Store
from gbcd.run.work import WHOLE, Build, Pool, Slice, Stage
from gbcd.run.worker import LocalPool


class Workers(NamedTuple):
    """Who computes.

    Attributes:
        n: Ray actors; 0 computes in this process.
        threads: processor threads of each.
        gpus: that each holds; 0.5 puts two on a GPU.
    """

    n: int
    threads: int = 1
    gpus: float = 0.0


class Team:
    """The workers of one kind of work. They come up with the first shard that is not committed, and stay until the end
    of the context, from one call of `execute` to the next.
    """

    def __init__(self, location: str, build: Build, workers: Workers) -> None:
        """Nobody works yet.

        Args:
            location: the results folder.
            build: builds the work in each worker.
            workers: who computes; no more are started than there are shards left.
        """
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
        """Workers for so many shards, started, and how many they are."""
        n = min(self._workers.n, n_shards)
        if self._pool is None or n > self._n:
            self._stop()
            self._pool, self._n = self._new(n), n
            self._pool.start()
        return self._pool, self._n

    def _new(self, n: int) -> Pool:
        if not n:
            return LocalPool(self.location, self._build)
        from gbcd.run.ray_pool import RayPool

        return RayPool(absolute(self.location), n, self._workers.threads, self._workers.gpus, self._build)

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
        wanted = [_own_first(stage, part) for stage in stages[:-1]] + [_own(stages[-1], part)]
        n_left = max(len(missing(store, *both)) for both in zip(stages, wanted, strict=True))
        if not n_left:
            return []
        pool, n = team.pool(n_left)
        for stage, shards in zip(stages[:-1], wanted, strict=False):
            if given_up := StageDriver(store, stage, shards, pool, n, display).run():
                raise Incomplete(f"{stage.title.lower()} cannot be completed: {given_up[0].message}")
        return StageDriver(store, stages[-1], wanted[-1], pool, n, display).run()
    except StorageError as error:
        raise Incomplete(str(error)) from error


def _own(stage: Stage, part: Slice) -> list[int]:
    return [shard for shard in range(len(stage.sizes)) if part.has(shard)]


def _own_first(stage: Stage, part: Slice) -> list[int]:
    return sorted(range(len(stage.sizes)), key=lambda shard: not part.has(shard))


def absolute(location: str) -> str:
    """A location that means the same in every folder; workers run in one of their own."""
    return location if "://" in location else os.fspath(Path(location).absolute())
