"""One worker: builds the work, computes the shards that it is given, and commits them.

A worker knows nothing of the others, nor of Ray: `ray_pool.py` runs it in an actor, `LocalPool` in this process, and
both give the same rows. A failure of a shard never escapes from `run`: it comes back as its `Outcome`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gbcd.errors import BadInput
from gbcd.run.commits import commit_path, publish
from gbcd.run.store import StorageError, Store
from gbcd.run.work import Build, OnProgress, Outcome, Task


class Worker:
    """Computes shards; call `run` as often as there is something to do."""

    def __init__(self, location: str, build: Build) -> None:
        """Build the work; results go to `location`.

        Raises:
            BadInput: this worker lacks what was planned.
        """
        self._location, self._work = location, build()
        self._stores: dict[str, Store] = {}

    def run(self, task: Task, on_progress: OnProgress) -> Outcome:
        """Compute a shard and commit it, unless it is committed.

        Raises:
            BadInput: this worker cannot do what was planned, or what it builds on is damaged.
        """
        try:
            self._commit(task, on_progress)
        except BadInput:
            raise
        except StorageError as error:
            return Outcome(task, "storage", str(error))
        except Exception as error:
            return Outcome(task, "error", f"{type(error).__name__}: {error}")
        return Outcome(task)

    def _commit(self, task: Task, on_progress: OnProgress) -> None:
        if task.stage not in self._stores:
            self._stores[task.stage] = Store(self._location).below(task.stage)
        store = self._stores[task.stage]
        if store.exists(commit_path(task.shard)):
            return
        started = time.perf_counter()
        tables = self._work.compute(task.stage, task.shard, on_progress)
        self._work.check(task.stage, task.shard, tables)
        publish(store, task.shard, tables, time.perf_counter() - started)


class LocalPool:
    """Runs tasks one after the other in this process."""

    def __init__(self, location: str, build: Build) -> None:
        self._worker = Worker(location, build)
        self._waiting: list[Task] = []
        self._done = 0
        self.ready = 1

    def room(self) -> int:
        """How many tasks may be submitted now."""
        return 1 - len(self._waiting)

    def submit(self, task: Task) -> None:
        """Take a task."""
        self._waiting.append(task)

    def wait(self, timeout: float, on_progress: Callable[[], None]) -> list[Outcome]:
        """Do what was submitted; `timeout` is for pools that wait."""
        del timeout

        def report(done: int) -> None:
            self._done = done
            on_progress()

        tasks, self._waiting = self._waiting, []
        outcomes = [self._worker.run(task, report) for task in tasks]
        self._done = 0
        return outcomes

    def done(self) -> int:
        """How much is done of the present task."""
        return self._done

    def close(self) -> None:
        """Nothing is left to stop."""
