"""Workers as Ray actors, on this machine or on the cluster that `RAY_ADDRESS` names.

Each actor is a `Worker` with its own copy of the model and a stated share of processors and GPUs. Ray's own retries
and restarts are off: an actor that dies is replaced here, and its shard goes back to the driver, which alone decides
what is tried again. All actors are asked for at the start; those for which there is no room yet come up when nodes
join, so the pool grows with an autoscaling cluster and shrinks when nodes leave.

A worker that hangs without dying (stopped, stuck in a system call or in a GPU driver) reports nothing. How long a batch
takes is not known beforehand, so it is measured: an actor that is silent for longer than `silence_limit` is ended and
counts as lost. One that is wrongly replaced costs only time: whichever attempt commits first counts. One that hangs
before it is ready gets no shard.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, cast

import ray
from ray._private.state import state
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from gbcd.errors import BadInput, Incomplete
from gbcd.printing import duration
from gbcd.run.store import StorageError
from gbcd.run.work import Build, Failure, Outcome, Task, Workers
from gbcd.run.worker import Worker

#: How often, per worker asked for, workers may be lost in a row before any is ready.
MAX_LOST_STARTS = 3

#: Seconds of silence that are always allowed, and before any worker has made progress.
FLOOR, UNMEASURED = 600.0, 24 * 3600.0

#: How many times the longest silence so far another may last.
FACTOR = 20.0

#: What a call to an actor returns at once.
Ref = Any


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


def cluster_offers_gpu() -> bool:
    """True if a node that is up has a GPU, or one that the cluster's configuration lets it start."""
    if ray.cluster_resources().get("GPU", 0) > 0:
        return True
    offered = state.get_max_resources_from_cluster_config()
    return bool(offered and offered.get("GPU", 0) > 0)


class Actor:
    """A worker that says where it runs and, while it computes, how far it is."""

    def __init__(self, location: str, build: Build) -> None:
        """Nothing is built yet."""
        self._made_of, self._done = (location, build), 0

    def start(self) -> str:
        """Build the work; returns the node's identifier."""
        self._worker = Worker(*self._made_of)
        return str(ray.get_runtime_context().get_node_id())

    def run(self, task: Task) -> Outcome:
        """Compute a shard."""
        self._done = 0
        return self._worker.run(task, self._report)

    def done(self) -> int:
        """How much of the present shard is done; answers while it is computed."""
        return self._done

    def _report(self, done: int) -> None:
        self._done = done


class _Slot:
    """One actor with what it was asked to do.

    Attributes:
        actor: its handle.
        node: where it runs, once it has started.
        call: of `start` or `run`, while it is under way; None of one that can take a shard.
        task: the shard that it computes.
        asked: the call of `done` that is under way.
        done: how much of its shard is done.
        heard: when it began its shard, or last made progress.
    """

    def __init__(self, actor: Any) -> None:
        """Ask it to start."""
        self.actor = actor
        self.node: str | None = None
        self.call: Ref = actor.start.remote()
        self.task: Task | None = None
        self.asked: Ref = None
        self.done = 0
        self.heard = time.monotonic()

    def submit(self, task: Task) -> None:
        """Give it a shard."""
        self.task, self.call = task, self.actor.run.remote(task)
        self.done, self.heard = 0, time.monotonic()

    def collected(self) -> Outcome | None:
        """Take over the call, which is done; raises what went wrong in it."""
        value = ray.get(self.call)
        self.call = None
        if self.task is None:
            self.node = cast(str, value)
            return None
        self.task, self.done = None, 0
        return cast(Outcome, value)


class RayPool:
    """Workers as actors."""

    def __init__(self, location: str, workers: Workers, build: Build) -> None:
        """Ask for the actors, which are not ready yet; this process is `connected`."""
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {"progress": 1}}
        remote = cast(Any, ray.remote(num_cpus=workers.threads, num_gpus=workers.gpus, **options)(Actor))
        self._create = lambda: _Slot(remote.remote(location, build))
        self._n = workers.n
        self._slots = [self._create() for _ in range(workers.n)]
        self._lost_starts = 0
        self._longest_silence: float | None = None

    @property
    def ready(self) -> int:
        """Workers that are ready for shards or at one."""
        return sum(slot.node is not None for slot in self._slots)

    def room(self) -> int:
        """How many shards may be submitted now."""
        return sum(slot.call is None for slot in self._slots)

    def submit(self, task: Task) -> None:
        """Give a shard to an idle worker."""
        next(slot for slot in self._slots if slot.call is None).submit(task)

    def wait(self, timeout: float, on_progress: Callable[[], None]) -> list[Outcome]:
        """What became of shards since the last call; waits for something to happen, at most `timeout` seconds."""
        del on_progress  # it does not take longer
        calls = [slot.call for slot in self._slots if slot.call is not None]
        ray.wait(calls, num_returns=1, timeout=timeout)
        done = set(ray.wait(calls, num_returns=len(calls), timeout=0)[0])
        outcomes = [self._collect(slot) for slot in list(self._slots) if slot.call in done]
        self._ask_for_progress()
        outcomes += [self._end_if_silent(slot) for slot in list(self._slots)]
        return [outcome for outcome in outcomes if outcome is not None]

    def done(self) -> int:
        """How much is done of the shards that are under way."""
        return sum(slot.done for slot in self._slots)

    def close(self) -> None:
        """Stop the actors."""
        for slot in self._slots:
            ray.kill(slot.actor)

    def _collect(self, slot: _Slot) -> Outcome | None:
        try:
            outcome = slot.collected()
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, BadInput | Incomplete | StorageError):
                raise cause from None  # the sentence, without the trace of a remote process
            raise
        except RayError as error:
            return self._lost(slot, _failure(slot, error), _reason(error))
        self._lost_starts = 0
        return outcome

    def _ask_for_progress(self) -> None:
        for slot in self._slots:
            if slot.asked is not None and ray.wait([slot.asked], timeout=0)[0]:
                with suppress(RayError):  # a worker that died is found by its call
                    self._heard(slot, cast(int, ray.get(slot.asked)))
                slot.asked = None
            if slot.asked is None and slot.task is not None:
                slot.asked = slot.actor.done.options(concurrency_group="progress").remote()

    def _heard(self, slot: _Slot, done: int) -> None:
        if slot.task is not None and done > slot.done:
            now = time.monotonic()
            self._longest_silence = max(self._longest_silence or 0.0, now - slot.heard)
            slot.done, slot.heard = done, now

    def _end_if_silent(self, slot: _Slot) -> Outcome | None:
        silence, limit = time.monotonic() - slot.heard, silence_limit(self._longest_silence)
        if slot.task is None or silence <= limit:
            return None
        reason = f"it made no progress for {duration(silence)}; the limit in this run is {duration(limit)}"
        return self._lost(slot, "worker_lost", reason)

    def _lost(self, slot: _Slot, failure: Failure, reason: str) -> Outcome | None:
        """Replace an actor; what became of its shard, if it was at one."""
        if slot.node is None:
            self._lost_starts += 1
            if self._lost_starts >= MAX_LOST_STARTS * self._n:
                raise Incomplete(f"workers die before they are ready: {reason}")
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._create()
        return None if slot.task is None else Outcome(slot.task, failure, f"the worker was lost: {reason}")


def silence_limit(longest: float | None) -> float:
    """Seconds of silence after which a worker is replaced, by the longest that ended in progress; None: none did."""
    return UNMEASURED if longest is None else max(FLOOR, FACTOR * longest)


def _failure(slot: _Slot, error: RayError) -> Failure:
    """A machine that is gone took its workers with it; a worker that ran out of memory did so by itself."""
    living = {node["NodeID"] for node in cast("list[dict[str, Any]]", ray.nodes()) if node["Alive"]}
    return "worker_lost" if _is_memory(error) or slot.node is None or slot.node in living else "node_lost"


def _is_memory(error: RayError) -> bool:
    return isinstance(error, OutOfMemoryError) or "running low on memory" in str(error)


def _reason(error: RayError) -> str:
    """The first sentence of what Ray says; its messages go on for a page."""
    if _is_memory(error):
        return (
            "its machine ran out of memory and Ray ended it; ask for fewer workers (--workers) or smaller batches "
            "(--batch-size)"
        )
    first = next((part.strip() for part in str(error).splitlines() if part.strip()), type(error).__name__)
    return first if isinstance(error, RayActorError) else f"{type(error).__name__}: {first}"
