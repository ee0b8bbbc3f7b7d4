"""The driver: gives shards to workers until every one is committed or given up, and decides what is tried again.

The driver holds no results, only which shards are left, so its memory does not grow with the work, and it can be
killed at any time: what is committed is committed, and the same command computes the rest.

A failed shard is tried again, up to `MAX_FAILURES` times, and then quarantined with the reason while the rest goes on;
after an error, a last try sets aside the prompts that fail alone and commits the others (`sifting.py`). A run tries
again what runs before it had given up.
Running out of memory halves its batch and counts only once the batch is a single prompt. A worker that dies once may
have been killed by anything, so its shard is repeated as it was, which gives the same bits; the second time memory is
the likely cause and the batch is halved too. A node that is taken away costs nothing. Storage that fails is no fault of
a shard: the run stops.
"""

from __future__ import annotations

import hashlib
from collections import deque
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, runtime_checkable

from gbcd.errors import Incomplete
from gbcd.run.commits import committed_ids, read_commits
from gbcd.run.progress import ProgressDisplay, Standing
from gbcd.run.quarantine import (
    Quarantine,
    first_line,
    quarantine_path,
    quarantined,
    quarantined_ids,
    record_quarantine,
)
from gbcd.run.results import COMPONENTS_FILE
from gbcd.run.shards import Plan
from gbcd.run.store import Store
from gbcd.run.workers import CALIBRATION_FILE, Failed, Job, Outcome

#: Failures of one shard after which it is sifted, or given up.
MAX_FAILURES = 3

#: Seconds after which the display is brought up to date though nothing happened.
TICK = 1.0


@runtime_checkable
class Pool(Protocol):
    """Workers, wherever they run."""

    @property
    def ready(self) -> int:
        """Workers that can take jobs."""
        ...

    def start(self, calibration: bytes | None) -> None:
        """Bring up at least one worker, with the calibration settled."""
        ...

    def room(self) -> int:
        """How many more jobs may be submitted now."""
        ...

    def submit(self, job: Job) -> None:
        """Take a job."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """What became of jobs since the last call."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


class Retry(NamedTuple):
    """What becomes of a failed job: tried again as `job`, with `failures` to its name; given up if `job` is None."""

    job: Job | None
    failures: int


def retry(failed: Failed, failures: int) -> Retry:
    """The policy. `failures` are those of the shard before this one."""
    job = failed.job
    again = job._replace(attempt=job.attempt + 1)
    smaller = again._replace(batch_size=max(1, job.batch_size // 2))
    if failed.kind in ("returned", "node_lost"):
        return Retry(again, failures)
    if failed.kind == "out_of_memory" and job.batch_size > 1:
        return Retry(smaller, failures)
    failures += 1
    if failures >= MAX_FAILURES:
        is_sifted = failed.kind in ("error", "out_of_memory") and not job.sift
        return Retry(again._replace(sift=True) if is_sifted else None, failures)
    return Retry(smaller if failed.kind == "worker_lost" and failures > 1 else again, failures)


class Driver:
    """One run over what is left of a plan."""

    def __init__(self, store: Store, plan: Plan, pool: Pool, workers: int, display: ProgressDisplay) -> None:
        """Find out what is left; `workers` is the number asked for, shown to the reader."""
        self._done = committed_ids(store)
        self._store, self._plan, self._pool, self._display = store, plan, pool, display
        self._workers = workers
        self._given_up_before = quarantined_ids(store)
        self._left = deque(
            Job(shard.id, 1, plan.study.batch_size, sift=shard.id in self._done)
            for shard in plan.shards
            if shard.id not in self._done or shard.id in self._given_up_before
        )
        self._shards_done = len(plan.shards) - len(self._left)
        self._prompts_done = plan.n_prompts - sum(plan.shards[job.shard].n_prompts for job in self._left)
        self._in_flight = 0
        self._failures: dict[int, int] = {}
        self._retries = 0
        self._given_up = 0

    def run(self) -> None:
        """Go on until nothing is left but what was given up, which is recorded.

        Raises:
            BadInput: a worker lacks what was planned.
            Incomplete: workers or storage fail for good; what is committed stays.
        """
        calibration = self._calibration()
        if not self._left and calibration is not None and self._store.exists(COMPONENTS_FILE):
            return
        self._pool.start(calibration)
        self._show()
        while self._left or self._in_flight:
            while self._left and self._pool.room() > 0:
                self._pool.submit(self._left.popleft())
                self._in_flight += 1
            for outcome in self._pool.wait(TICK):
                self._in_flight -= 1
                self._settle(outcome)
            self._show()

    def _settle(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self._failed(outcome)
            return
        self._shards_done += 1
        self._prompts_done += self._plan.shards[outcome.job.shard].n_prompts
        if outcome.job.sift or outcome.job.shard in self._given_up_before:
            self._look_at_record(outcome.job.shard)

    def _look_at_record(self, shard: int) -> None:
        """A committed shard either lacks values for some prompts, or has no use for its record any more."""
        held = quarantined(self._store, [shard])
        for record in held:
            self._given_up += 1
            self._display.say(record.in_words)
        if not held:
            self._store.delete(quarantine_path(shard))

    def _failed(self, failed: Failed) -> None:
        if failed.kind == "storage":
            raise Incomplete(f"results cannot be stored: {failed.reason}")
        shard = failed.job.shard
        decision = retry(failed, self._failures.get(shard, 0))
        self._failures[shard] = decision.failures
        if decision.job is None:
            self._give_up(shard, decision.failures, failed.reason)
            return
        self._left.appendleft(decision.job)
        if failed.kind != "returned":
            self._retries += 1
            how = "looking for the prompts it fails on" if decision.job.sift else "trying again"
            self._display.say(f"shard {shard}: {first_line(failed.reason)}; {how}")

    def _give_up(self, shard: int, attempts: int, reason: str) -> None:
        self._given_up += 1
        record = Quarantine(shard=shard, attempts=attempts, reason=reason, at=datetime.now(UTC))
        if shard not in self._done:  # else the record is that of its prompts, and stays
            record_quarantine(self._store, record)
        self._display.say(record.in_words)

    def _calibration(self) -> bytes | None:
        """The stored calibration, if it is the one that the first committed shard names."""
        try:
            stored = self._store.read(CALIBRATION_FILE)
        except FileNotFoundError:
            return None
        first = read_commits(self._store, sorted(self._done)[:1])
        if first and first[0].calibration != hashlib.sha256(stored).hexdigest():
            raise Incomplete(
                f"{CALIBRATION_FILE} is damaged; `gbcd verify --repair {self._store.location}` restores it"
            )
        return stored

    def _show(self) -> None:
        self._display.show(
            Standing(
                shards_done=self._shards_done,
                shards=len(self._plan.shards),
                prompts_done=self._prompts_done,
                prompts=self._plan.n_prompts,
                retries=self._retries,
                quarantined=self._given_up,
                workers_ready=self._pool.ready,
                workers=self._workers,
            )
        )
