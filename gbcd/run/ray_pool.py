"""Workers as Ray actors, on this machine or on the cluster that `RAY_ADDRESS` names.

Each actor is a `Worker` with its own copy of the model and a stated share of processors and GPUs. Ray's own retries
and restarts are off: an actor that dies is replaced here, and its jobs go back to the driver, which alone decides what
is tried again. All actors are asked for at the start; those for which there is no room yet come up when nodes join, so
the pool grows with an autoscaling cluster and shrinks when nodes leave. An actor that is silent for too long over a
shard (`patience.py`) is ended and counts as lost. One that hangs before it is ready gets no job, and holds up nobody.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from math import inf
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from gbcd.errors import Incomplete
from gbcd.run import patience
from gbcd.run.ray_actor import Actor, Ref, Slot
from gbcd.run.workers import Committed, EngineBuilder, Failed, FailureKind, Job, Outcome, build_engine

#: Jobs given to one actor at a time: the one that it computes and the next, so that it never waits for the driver.
IN_FLIGHT = 2

#: How often, per worker asked for, workers may be lost in a row before any is ready.
MAX_LOST_STARTS = 3

#: Seconds between looks at the clock while the first worker settles the calibration.
LOOK = 10.0


def connect(n_cpus: int) -> bool:
    """Join the cluster that `RAY_ADDRESS` names, or start Ray on this machine with at least `n_cpus` processors.

    Returns:
        True if Ray was started here, and so must be stopped here.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return False
    ray.init(address="local", num_cpus=max(n_cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
    return True


@contextmanager
def connected(n_cpus: int) -> Generator[None]:
    """Joined as by `connect` inside the context; what was started is stopped at its end."""
    started = connect(n_cpus)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def cluster_has_gpu() -> bool:
    """True if a node that is up has a GPU."""
    return ray.cluster_resources().get("GPU", 0) > 0


class RayPool:
    """`n` workers as actors."""

    def __init__(self, out: str, n: int, threads: int, gpus: float, build: EngineBuilder = build_engine) -> None:
        """Connect to Ray and ask for the actors; `threads` processors and `gpus` (perhaps a part of one) each."""
        self._started_ray = connect(n * threads)
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Actor)
        self._create = lambda: Slot(cast(Any, remote).remote(out, build))
        self._slots = [self._create() for _ in range(n)]
        self._calibration: Ref | None = None
        self._lost_starts = 0
        self._patience = patience.Patience()

    @property
    def ready(self) -> int:
        """Workers that can take jobs."""
        return sum(slot.is_ready for slot in self._slots)

    def start(self, calibration: bytes | None) -> None:
        """Wait for the first worker, let it settle the calibration, and hand that to all.

        Where one is silent for `patience.FLOOR` seconds, the next is asked too: the calibration is stored exclusively,
        so all get the same, whoever settles it.

        Raises:
            BadInput: a worker lacks what was planned.
            Incomplete: workers die before they are ready.
        """
        while self._calibration is None:
            done = self._done(LOOK)
            for slot in list(self._slots):
                self._collect(slot, done)
            idle = [slot for slot in self._slots if slot.is_idle]
            asked = [slot.since for slot in self._slots if slot.preparing is not None]
            if idle and self._calibration is None and time.monotonic() - max(asked, default=-inf) >= patience.FLOOR:
                idle[0].prepare(calibration)
        for slot in self._slots:
            if slot.is_idle:
                slot.prepare(self._calibration)

    def room(self) -> int:
        """How many more jobs may be submitted now."""
        return sum(IN_FLIGHT - len(slot.jobs) for slot in self._slots if slot.is_ready)

    def submit(self, job: Job) -> None:
        """Give a job to the ready worker that has least to do."""
        min((slot for slot in self._slots if slot.is_ready), key=lambda slot: len(slot.jobs)).submit(job)

    def wait(self, timeout: float) -> list[Outcome]:
        """What became of jobs since the last call; waits for something to happen, at most `timeout` seconds.

        Raises:
            BadInput: a new worker lacks what was planned.
            Incomplete: workers die before they are ready.
        """
        done = self._done(timeout)
        outcomes = [outcome for slot in list(self._slots) for outcome in self._collect(slot, done)]
        return outcomes + [outcome for slot in list(self._slots) for outcome in self._end_if_silent(slot)]

    def close(self) -> None:
        """Stop the actors, and Ray if it was started for them."""
        for slot in self._slots:
            ray.kill(slot.actor)
        if self._started_ray:
            ray.shutdown()

    def _done(self, timeout: float) -> set[Ref]:
        refs = [ref for slot in self._slots for ref in slot.pending()]
        if not refs:
            return set()
        ray.wait(refs, num_returns=1, timeout=timeout)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return set(done)

    def _collect(self, slot: Slot, done: set[Ref]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            if slot.loading in done:
                slot.loaded()
                if self._calibration is not None:
                    slot.prepare(self._calibration)
            elif slot.preparing in done:
                settled = slot.prepared()
                self._calibration = self._calibration or ray.put(settled)
                self._lost_starts = 0
            while slot.jobs and slot.jobs[0][0] in done:
                finished = slot.finished()
                outcomes.append(finished.outcome)
                if isinstance(finished.outcome, Committed):
                    self._patience.committed(finished.outcome.job, finished.seconds)
        except RayTaskError:
            raise
        except RayError as error:
            outcomes += _lost(slot, error)
            self._replace(slot, str(error))
        return outcomes

    def _end_if_silent(self, slot: Slot) -> list[Outcome]:
        if not slot.jobs:
            return []
        _, oldest = slot.jobs[0]
        reason = self._patience.exhausted(oldest, time.monotonic() - slot.since)
        if reason is None:
            return []
        outcomes = _failed(slot, "worker_lost", reason)
        self._replace(slot, reason)
        return outcomes

    def _replace(self, slot: Slot, reason: str) -> None:
        if not slot.is_ready:
            self._lost_starts += 1
            if self._lost_starts >= MAX_LOST_STARTS * len(self._slots):
                raise Incomplete(f"workers die before they are ready; the last one: {_last_line(reason)}")
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._create()


def _lost(slot: Slot, error: RayError) -> list[Outcome]:
    """The oldest job was being computed and may be the cause; the others had not begun."""
    kind: FailureKind = "worker_lost" if slot.node in _living_nodes() else "node_lost"
    if isinstance(error, OutOfMemoryError) or "memory pressure" in str(error):
        kind = "out_of_memory"
    reason = str(error).strip().splitlines()[0] if isinstance(error, RayActorError) else type(error).__name__
    return _failed(slot, kind, reason)


def _failed(slot: Slot, kind: FailureKind, reason: str) -> list[Outcome]:
    return [
        Failed(job, "returned" if number else kind, f"the worker was lost: {reason}")
        for number, (_, job) in enumerate(slot.jobs)
    ]


def _last_line(text: str) -> str:
    """Of a trace, the line that names the error."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else text


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in cast("list[dict[str, Any]]", ray.nodes()) if node["Alive"]}
