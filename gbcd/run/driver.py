"""The driver: gives shards to workers until every one is committed or given up.

The driver holds no results, only which shards are left, so its memory does not grow with the work, and it can be
killed at any time: what is committed is committed, and the same command computes the rest.

A shard that fails is tried again, three times in all, and then recorded (`given_up.py`) and left out while the rest
goes on. A machine that is taken away counts for nothing. Storage that fails is no fault of a shard: the run stops.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime

from gbcd.errors import Incomplete
from gbcd.run.commits import committed_ids
from gbcd.run.given_up import GivenUp, record
from gbcd.run.progress import Progress, ProgressDisplay
from gbcd.run.store import Store
from gbcd.run.work import Failed, Outcome, Pool, Stage, Task

#: Failures after which a shard is given up.
MAX_FAILURES = 3

#: Seconds after which the display is brought up to date though nothing happened.
TICK = 1.0


def missing(store: Store, stage: Stage, wanted: Sequence[int]) -> list[int]:
    """Shards of `wanted` that are not committed; `store` is that of the results folder."""
    done = committed_ids(store.below(stage.folder))
    return [shard for shard in wanted if shard not in done]


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
        """Find out what is left.

        Args:
            store: of the results folder.
            stage: what is computed.
            wanted: its shards that are, in this order.
            pool: workers, started.
            n_workers: how many are asked for, shown to the reader.
            display: where progress is shown.
        """
        shards = missing(store, stage, wanted)
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
        if isinstance(outcome, Failed):
            self._failed(outcome)
            return
        self._progress = self._progress._replace(
            shards_done=self._progress.shards_done + 1,
            done=self._progress.done + self._stage.sizes[outcome.task.shard],
        )

    def _failed(self, failed: Failed) -> None:
        if failed.kind == "storage":
            raise Incomplete(f"results cannot be stored: {failed.reason}")
        task = failed.task
        self._failures[task.shard] += failed.kind != "node_lost"
        failures = self._failures[task.shard]
        if failures < MAX_FAILURES:
            self._left.append(task._replace(attempt=task.attempt + 1))
            self._progress = self._progress._replace(retries=self._progress.retries + 1)
            self._display.say(f"shard {task.shard}: {failed.reason.strip().splitlines()[0]}; trying again")
            return
        given_up = GivenUp(shard=task.shard, attempts=failures, reason=failed.reason, at=datetime.now(UTC))
        record(self._store, given_up)
        self._given_up.append(given_up)
        self._progress = self._progress._replace(given_up=len(self._given_up))
        self._display.say(given_up.message)

    def _show(self) -> None:
        under_way = self._pool.done()
        self._display.show(
            self._progress._replace(done=self._progress.done + under_way, workers_ready=self._pool.ready)
        )
