"""Runs work of any kind to its end, in this process or on Ray: the one way in which gbcd computes in bulk.

stages -> shards that are not committed -> workers -> commits. The same call goes on where an earlier one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
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


def execute(
    location: str,
    stages: Sequence[Stage],
    build: Build,
    workers: Workers,
    display: ProgressDisplay,
    part: Slice = WHOLE,
) -> list[GivenUp]:
    """Compute what is not committed yet.

    Args:
        location: the results folder.
        stages: what is wanted, in order.
        build: builds the work in each worker.
        workers: who computes; no more are started than there are shards left.
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
    store = Store(location)
    try:
        wanted = [_own_first(stage, part) for stage in stages[:-1]] + [_own(stages[-1], part)]
        n_left = max(len(missing(store, *both)) for both in zip(stages, wanted, strict=True))
        if not n_left:
            return []
        n = min(workers.n, n_left)
        with _pool(location, build, workers._replace(n=n)) as pool:
            pool.start()
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


@contextmanager
def _pool(location: str, build: Build, workers: Workers) -> Generator[Pool]:
    if workers.n:
        from gbcd.run.ray_pool import RayPool

        pool = RayPool(absolute(location), workers.n, workers.threads, workers.gpus, build)
    else:
        pool = LocalPool(location, build)
    try:
        yield pool
    finally:
        pool.close()


def absolute(location: str) -> str:
    """A location that means the same in every folder; workers run in one of their own."""
    return location if "://" in location else os.fspath(Path(location).absolute())
