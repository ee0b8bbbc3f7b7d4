"""Workers as Ray actors, on this machine or on the cluster that `RAY_ADDRESS` names.

Each actor is a `Worker` with its own copy of the model and a stated share of processors and GPUs. Ray's own retries
and restarts are off: an actor that dies is replaced here, and its jobs go back to the driver, which alone decides what
is tried again. All actors are asked for at the start; those for which there is no room yet come up when nodes join, so
the pool grows with an autoscaling cluster and shrinks when nodes leave.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from gbcd.errors import Incomplete
from gbcd.job.workers import EngineBuilder, Failed, FailureKind, Job, Outcome, Worker, build_engine

#: What a call to an actor returns at once.
Ref = Any

#: Jobs given to one actor at a time: the one that it computes and the next, so that it never waits for the driver.
IN_FLIGHT = 2

#: How often, per worker asked for, workers may be lost in a row before any is ready.
MAX_LOST_STARTS = 3


class _Actor(Worker):
    """A worker that can say where it runs."""

    def load_here(self) -> str:
        """Load the model; returns the node's identifier."""
        self.load()
        return str(ray.get_runtime_context().get_node_id())


class _Slot:
    """One actor with what it was asked to do, oldest first."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.node: str | None = None
        self.loading: Ref = actor.load_here.remote()
        self.preparing: Ref = None
        self.jobs: deque[tuple[Ref, Job]] = deque()

    @property
    def is_ready(self) -> bool:
        return self.loading is None and self.preparing is None

    def pending(self) -> list[Ref]:
        starting = [ref for ref in (self.loading, self.preparing) if ref is not None]
        return [*starting, *(ref for ref, _ in self.jobs)]


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
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Actor)
        self._create = lambda: _Slot(cast(Any, remote).remote(out, build))
        self._slots = [self._create() for _ in range(n)]
        self._calibration: Ref | None = None
        self._lost_starts = 0

    @property
    def ready(self) -> int:
        """Workers that can take jobs."""
        return sum(slot.is_ready for slot in self._slots)

    def start(self, calibration: bytes | None) -> None:
        """Wait for the first worker, let it settle the calibration, and hand that to all.

        Raises:
            BadInput: a worker lacks what was planned.
            Incomplete: workers die before they are ready.
        """
        while self._calibration is None:
            done, _ = ray.wait([ref for slot in self._slots for ref in slot.pending()], num_returns=1)
            slot = next(slot for slot in self._slots if done[0] in slot.pending())
            try:
                self._loaded(slot)
                settled = cast(bytes, ray.get(slot.actor.prepare.remote(calibration)))
                self._calibration = ray.put(settled)
            except RayTaskError:
                raise
            except RayError as error:
                self._replace(slot, str(error))
        self._lost_starts = 0

    def room(self) -> int:
        """How many more jobs may be submitted now."""
        return sum(IN_FLIGHT - len(slot.jobs) for slot in self._slots if slot.is_ready)

    def submit(self, job: Job) -> None:
        """Give a job to the ready worker that has least to do."""
        slot = min((slot for slot in self._slots if slot.is_ready), key=lambda slot: len(slot.jobs))
        slot.jobs.append((slot.actor.run.remote(job), job))

    def wait(self, timeout: float) -> list[Outcome]:
        """What became of jobs since the last call; waits for something to happen, at most `timeout` seconds.

        Raises:
            BadInput: a new worker lacks what was planned.
            Incomplete: workers die before they are ready.
        """
        refs = [ref for slot in self._slots for ref in slot.pending()]
        if refs:
            ray.wait(refs, num_returns=1, timeout=timeout)
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            return [outcome for slot in list(self._slots) for outcome in self._collect(slot, set(done))]
        return []

    def close(self) -> None:
        """Stop the actors, and Ray if it was started for them."""
        for slot in self._slots:
            ray.kill(slot.actor)
        if self._started_ray:
            ray.shutdown()

    def _collect(self, slot: _Slot, done: set[Ref]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            if slot.loading in done:
                self._loaded(slot)
            elif slot.preparing in done:
                ray.get(slot.preparing)
                slot.preparing = None
                self._lost_starts = 0
            while slot.jobs and slot.jobs[0][0] in done:
                outcomes.append(cast(Outcome, ray.get(slot.jobs[0][0])))
                slot.jobs.popleft()
        except RayTaskError:
            raise
        except RayError as error:
            outcomes += _lost(slot, error)
            self._replace(slot, str(error))
        return outcomes

    def _loaded(self, slot: _Slot) -> None:
        slot.node = cast(str, ray.get(slot.loading))
        slot.loading = None
        if self._calibration is not None:
            slot.preparing = slot.actor.prepare.remote(self._calibration)

    def _replace(self, slot: _Slot, reason: str) -> None:
        if not slot.is_ready:
            self._lost_starts += 1
            if self._lost_starts >= MAX_LOST_STARTS * len(self._slots):
                raise Incomplete(f"workers die before they are ready; the last one: {_last_line(reason)}")
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._create()


def _lost(slot: _Slot, error: RayError) -> list[Outcome]:
    """The oldest job was being computed and may be the cause; the others had not begun."""
    kind: FailureKind = "worker_lost" if slot.node in _living_nodes() else "node_lost"
    if isinstance(error, OutOfMemoryError) or "memory pressure" in str(error):
        kind = "out_of_memory"
    reason = str(error).strip().splitlines()[0] if isinstance(error, RayActorError) else type(error).__name__
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
