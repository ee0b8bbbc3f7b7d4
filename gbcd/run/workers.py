"""One worker: a copy of the model that computes shards and commits them.

A worker knows nothing of the others, nor of Ray: `ray_pool.py` runs it as an actor, `LocalPool` calls it in this
process, and both give the same rows. It reads the plan, loads the model and refuses to go on if versions or weights
are not those of the plan. Centred norms need the mean inputs of every layer; the first worker takes them over a sample
of each task and stores them, exclusively, as `calibration.safetensors`, and from then on they are frozen for the study.

A failure in a shard never escapes from `run`: it comes back as `Failed`, and the driver decides.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch

from gbcd.component import Component
from gbcd.engine.calibration import Calibration, Centering
from gbcd.engine.engine import Engine
from gbcd.engine.tables import FAILED, ShardTables
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.commits import Commit, Conditions, commit_path, publish, read_commits
from gbcd.run.inputs import Inputs
from gbcd.run.quarantine import Quarantine, record_quarantine
from gbcd.run.results import COMPONENTS_FILE, encoded_components
from gbcd.run.shard_files import Expected, encode
from gbcd.run.shards import PLAN, Plan, read_plan
from gbcd.run.sifting import Sifted, in_words, sifted
from gbcd.run.store import StorageError, Store
from gbcd.versions import versions

CALIBRATION_FILE = "calibration.safetensors"

FailureKind = Literal["error", "out_of_memory", "storage", "worker_lost", "node_lost", "returned"]
"""`returned`: the job had not begun when its worker was lost."""


class Job(NamedTuple):
    """One try at one shard."""

    shard: int
    attempt: int
    batch_size: int
    sift: bool = False
    """Whether prompts that fail may be set aside; then a commit without values for some is no reason to stop."""


class Committed(NamedTuple):
    """A shard is part of the results, by this try or by an earlier one."""

    job: Job


class Failed(NamedTuple):
    """A try that left nothing behind."""

    job: Job
    kind: FailureKind
    reason: str


Outcome = Committed | Failed


@runtime_checkable
class ShardEngine(Protocol):
    """What a worker needs of the gradient engine."""

    @property
    def components(self) -> list[Component]:
        """Parts, in the order of the values."""
        ...

    def calibrate(self, prompts: Sequence[EncodedPrompt], centering: Centering) -> Calibration:
        """Mean inputs over prompts."""
        ...

    def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
        """Tables of one shard."""
        ...


EngineBuilder = Callable[[LoadedModel, Plan, int, Calibration | None], ShardEngine]


def build_engine(loaded: LoadedModel, plan: Plan, batch_size: int, calibration: Calibration | None) -> ShardEngine:
    """The gradient engine of a plan."""
    return Engine(loaded, wrong_answers=list(plan.study.wrong_answers), batch_size=batch_size, calibration=calibration)


class Worker:
    """Computes the shards it is given. Call `load`, then `prepare`, then `run` as often as there is work."""

    def __init__(self, out: str, build: EngineBuilder = build_engine) -> None:
        """Remember where to work; nothing is read yet."""
        self._store = Store(out)
        self._build = build

    def load(self) -> None:
        """Read the plan and load the model.

        Raises:
            BadInput: this machine has other versions or other weights than the plan names.
        """
        if not self._store.exists(PLAN):
            raise BadInput(
                f"a worker does not see {self._store.location!r}: with workers on several machines, results go to a "
                "bucket or to a folder that all of them share"
            )
        self._plan = read_plan(self._store)
        study = self._plan.study
        torch.set_num_threads(study.threads)
        self._inputs = Inputs(self._store, self._plan)
        self._loaded = models.load(study.model, study.device, study.dtype)
        planned, here = self._plan.identity, versions()
        problems = [
            f"{name} {planned.versions[name]} -> {here[name]}" for name in here if here[name] != planned.versions[name]
        ]
        if self._loaded.sha256 != planned.hashes["model"]:
            problems.append(f"weights of {study.model!r} {planned.hashes['model'][:12]} -> {self._loaded.sha256[:12]}")
        if problems:
            raise BadInput("this worker does not have what was planned: " + "; ".join(problems))

    def prepare(self, calibration: bytes | None) -> bytes:
        """Store the table of components and take over the calibration; without one, make it and store it.

        Returns:
            The calibration that is frozen for this study; another worker may have been first.
        """
        self._store.create(COMPONENTS_FILE, encoded_components(self._loaded.components, self._loaded.sites.parallel))
        if calibration is None:
            calibration = self._calibrated()
        self._calibration = Calibration.from_bytes(calibration)
        self._calibration_sha256 = hashlib.sha256(calibration).hexdigest()
        self._use_batches_of(self._plan.study.batch_size)
        return calibration

    def run(self, job: Job) -> Outcome:
        """Compute a shard and commit it."""
        try:
            if not self._is_settled(job):
                self._compute(job)
        except StorageError as error:
            return Failed(job, "storage", str(error))
        except Exception as error:
            kind = "out_of_memory" if is_out_of_memory(error) else "error"
            return Failed(job, kind, in_words(error))
        return Committed(job)

    def _is_settled(self, job: Job) -> bool:
        if not job.sift:
            return self._store.exists(commit_path(job.shard))
        return any(FAILED not in commit.statuses for commit in self._committed(job))

    def _committed(self, job: Job) -> list[Commit]:
        return read_commits(self._store, [job.shard])

    def _compute(self, job: Job) -> None:
        started = time.perf_counter()
        shard = self._plan.shards[job.shard]
        encoded = self._inputs.read(shard)
        if job.batch_size != self._batch_size:
            self._use_batches_of(job.batch_size)
        wrong_answers = self._plan.study.wrong_answers
        found = sifted(self._engine, encoded, wrong_answers) if job.sift else Sifted(self._engine.compute(encoded), {})
        ids = [one.prompt.id for one in encoded]
        files = encode(shard, found.tables, Expected(ids, wrong_answers, len(self._engine.components)))
        conditions = Conditions(self._calibration_sha256, job.batch_size, self._plan.identity.versions)
        earlier = self._committed(job) if job.sift else []
        if any(files.statuses.get(FAILED, 0) >= commit.statuses.get(FAILED, 0) for commit in earlier):
            return  # no better than what is there
        if found.failed:
            reason = next(iter(found.failed.values()))
            record_quarantine(
                self._store,
                Quarantine(
                    shard=shard.id, attempts=job.attempt, prompts=found.failed, reason=reason, at=datetime.now(UTC)
                ),
            )
        seconds = time.perf_counter() - started
        publish(self._store, shard, files, conditions, seconds, job.attempt, instead_of=next(iter(earlier), None))

    def _use_batches_of(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._engine = self._build(self._loaded, self._plan, batch_size, self._calibration)

    def _calibrated(self) -> bytes:
        study = self._plan.study
        sample = [prompt for task in study.tasks for prompt in self._inputs.sample(task, study.calibration_prompts)]
        engine = self._build(self._loaded, self._plan, study.batch_size, None)
        calibration = engine.calibrate(sample, study.centering).to_bytes()
        self._store.create(CALIBRATION_FILE, calibration)
        return self._store.read(CALIBRATION_FILE)


def is_out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed, on a GPU or on the processor (where torch raises a plain RuntimeError)."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


class LocalPool:
    """Runs jobs one after the other in this process."""

    def __init__(self, out: str, build: EngineBuilder = build_engine) -> None:
        """Make the one worker."""
        self._worker = Worker(out, build)
        self._waiting: list[Job] = []
        self._threads = torch.get_num_threads()
        self.ready = 0

    def start(self, calibration: bytes | None) -> None:
        """Load the model and settle the calibration."""
        self._worker.load()
        self._worker.prepare(calibration)
        self.ready = 1

    def room(self) -> int:
        """How many more jobs may be submitted now."""
        return 1 - len(self._waiting)

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._waiting.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        """Do what was submitted; `timeout` is for pools that wait."""
        del timeout
        jobs, self._waiting = self._waiting, []
        return [self._worker.run(job) for job in jobs]

    def close(self) -> None:
        """Give the process its own number of threads back."""
        torch.set_num_threads(self._threads)
