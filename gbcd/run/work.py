"""What the executor runs: work of any kind, cut into shards that are committed one by one.

The executor (`executor.py`, `worker.py`, `ray_pool.py`, `commits.py`) knows of the work what stands here. A new kind of
work is a class with `compute` and `check`, a function without arguments that builds it in a worker, and the stages that
it consists of; `norms_work.py` is an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

Tables = Mapping[str, pa.Table]
"""By name; each becomes a file, `NAME/00012.ATTEMPT.parquet`."""

OnProgress = Callable[[int], None]
"""Told how much of the present shard is done, counted as in `Stage.sizes`."""


class UnsoundShardError(RuntimeError):
    """The tables of a shard are not what they must be."""


@runtime_checkable
class Work(Protocol):
    """Computes shards, in a worker."""

    def compute(self, stage: str, shard: int, on_progress: OnProgress) -> Tables:
        """The tables of one shard of the stage in the folder `stage`.

        The same shard must give the same tables in every worker. The values of a column `status`, where a table has
        one, are counted in the commit.

        Raises:
            BadInput: this worker cannot do what was planned; the run ends with the message.
            Exception: anything else is a failure of this shard, which is tried again.
        """
        ...

    def check(self, stage: str, shard: int, tables: Tables) -> None:
        """Refuse tables that are not what they must be, before they are committed.

        Raises:
            UnsoundShardError: says what is wrong.
        """
        ...


Build = Callable[[], Work]
"""Builds the work in a worker; pickled on the way there."""


class Stage(NamedTuple):
    """Shards that may be computed in any order. The next stage begins when all of them are committed.

    Attributes:
        folder: where its commits and files lie, below the results folder; "" for the results folder itself.
        sizes: of each shard, by its number.
        noun: what the sizes count.
        title: what a person reads while the stage is computed.
    """

    folder: str
    sizes: tuple[int, ...]
    noun: str = "prompt"
    title: str = "Computing"


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


class Task(NamedTuple):
    """A shard to be computed, by the folder of its stage and its number."""

    stage: str
    shard: int


Failure = Literal["error", "worker_lost", "node_lost", "storage"]
"""`node_lost`: the machine was taken away, which is no fault of the shard; `storage`: nothing can be stored."""


class Outcome(NamedTuple):
    """What became of a try at a shard.

    Attributes:
        task: what was tried.
        failure: None where the shard is part of the results now, by this try or by another.
        reason: of a failure, in a sentence.
    """

    task: Task
    failure: Failure | None = None
    reason: str = ""


@runtime_checkable
class Pool(Protocol):
    """Workers, wherever they run."""

    @property
    def ready(self) -> int:
        """Workers that are ready for tasks or at one."""
        ...

    def room(self) -> int:
        """How many tasks may be submitted now."""
        ...

    def submit(self, task: Task) -> None:
        """Take a task."""
        ...

    def wait(self, timeout: float, on_progress: Callable[[], None]) -> list[Outcome]:
        """What became of tasks since the last call; waits for something to happen, about `timeout` seconds.

        `on_progress` is called in between where this takes longer.

        Raises:
            BadInput: a worker cannot do what was planned.
            Incomplete: workers die before they are ready.
        """
        ...

    def done(self) -> int:
        """How much is done of the tasks that are under way."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...
