"""One worker as a Ray actor: what it was asked to do, and when it began the oldest of that."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple, cast

import ray

from gbcd.run.workers import Job, Outcome, Worker

#: What a call to an actor returns at once.
Ref = Any


class Actor(Worker):
    """A worker that can say where it runs."""

    def load_here(self) -> str:
        """Load the model; returns the node's identifier."""
        self.load()
        return str(ray.get_runtime_context().get_node_id())


class Finished(NamedTuple):
    """What became of a job, and the seconds since it became the oldest of its actor."""

    outcome: Outcome
    seconds: float


class Slot:
    """One actor with what it was asked to do.

    Attributes:
        actor: a handle of `Actor`.
        node: where it runs, once it has loaded.
        loading, preparing: calls that are under way.
        is_ready: whether it can take jobs.
        jobs: oldest first.
        since: when preparing, or the oldest job, was begun.
    """

    def __init__(self, actor: Any) -> None:
        """Ask it to load."""
        self.actor = actor
        self.node: str | None = None
        self.loading: Ref = actor.load_here.remote()
        self.preparing: Ref = None
        self.is_ready = False
        self.jobs: deque[tuple[Ref, Job]] = deque()
        self.since = 0.0

    @property
    def is_idle(self) -> bool:
        """True if it has loaded and was not yet asked to prepare."""
        return self.loading is None and self.preparing is None and not self.is_ready

    def pending(self) -> list[Ref]:
        """All calls that are under way."""
        starting = [ref for ref in (self.loading, self.preparing) if ref is not None]
        return [*starting, *(ref for ref, _ in self.jobs)]

    def loaded(self) -> None:
        """Take over that it has loaded; raises what went wrong."""
        self.node = cast(str, ray.get(self.loading))
        self.loading = None

    def prepare(self, calibration: bytes | Ref | None) -> None:
        """Ask it to take over the calibration, or to settle it."""
        self.preparing = self.actor.prepare.remote(calibration)
        self.since = time.monotonic()

    def prepared(self) -> bytes:
        """Take over that it is ready; returns the calibration, or raises what went wrong."""
        calibration = cast(bytes, ray.get(self.preparing))
        self.preparing, self.is_ready = None, True
        return calibration

    def submit(self, job: Job) -> None:
        """Give it a job."""
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs.append((self.actor.run.remote(job), job))

    def finished(self) -> Finished:
        """Take over the oldest job, which is done; raises what went wrong."""
        outcome = cast(Outcome, ray.get(self.jobs[0][0]))
        self.jobs.popleft()
        before, self.since = self.since, time.monotonic()
        return Finished(outcome, self.since - before)
