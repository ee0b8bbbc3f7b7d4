"""The work of a study: first the mean inputs of every task, then the norms of every shard of prompts.

Centred norms subtract mean inputs, which are measured on a sample of each task (`calibration/`, a shard for some of its
templates) and from then on frozen for the study: the norms of a shard name the means that they were taken against.
Workers read the means from the results folder, one task at a time, and never through the driver.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch

from gbcd.component import Component
from gbcd.engine.calibration import Calibration, Centering
from gbcd.engine.engine import Engine
from gbcd.engine.tables import STATISTICS, ShardTables, concatenated
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.commits import Commit, commit_path, damaged, read_commits, read_table
from gbcd.run.inputs import Inputs
from gbcd.run.mean_tables import means_from_tables, tables_from_means
from gbcd.run.norm_checks import check_norms
from gbcd.run.shards import PLAN, Plan, read_plan
from gbcd.run.store import Store
from gbcd.run.work import OnProgress, Stage, Tables
from gbcd.study import Study
from gbcd.versions import versions

#: Folders of the two stages.
MEANS, NORMS = "calibration", ""

#: In the metadata of the table of norms: SHA-256 of the means that they were taken against.
MEANS_KEY = b"calibration"


@runtime_checkable
class ShardEngine(Protocol):
    """What is needed of the gradient engine."""

    @property
    def components(self) -> list[Component]:
        """Parts, in the order of the values."""
        ...

    def calibrate(
        self, prompts: Sequence[EncodedPrompt], centering: Centering, batch_size: int, on_progress: OnProgress
    ) -> Calibration:
        """Mean inputs over prompts."""
        ...

    def compute(self, batch: Sequence[EncodedPrompt]) -> ShardTables:
        """Tables of one batch."""
        ...


EngineBuilder = Callable[[LoadedModel, Plan, Calibration | None], ShardEngine]


def build_engine(loaded: LoadedModel, plan: Plan, calibration: Calibration | None) -> ShardEngine:
    """The gradient engine of a plan."""
    return engine_of(loaded, plan.study, calibration)


def engine_of(loaded: LoadedModel, study: Study, calibration: Calibration | None) -> Engine:
    """The gradient engine of a study."""
    return Engine(
        loaded, study.wrong_answers, calibration, study.rules, study.edges, study.neurons, study.ig_steps,
        study.statistics or STATISTICS,
    )  # fmt: skip


def stages(plan: Plan) -> tuple[Stage, Stage]:
    """What a plan consists of."""
    return (
        Stage(MEANS, tuple(shard.n_prompts for shard in plan.means), title="Mean activations"),
        Stage(NORMS, tuple(shard.n_prompts for shard in plan.shards), title="Gradient norms"),
    )


class NormsWork:
    """The work of one plan, in a worker."""

    def __init__(self, location: str, build: EngineBuilder = build_engine, model: str | None = None) -> None:
        """Read the plan and load the model.

        Args:
            location: the results folder.
            build: makes the engine.
            model: where the model lies now; None where it lies as the plan says.

        Raises:
            BadInput: this machine does not see the results folder, or has other versions or weights than the plan.
        """
        self._store = Store(location)
        if not self._store.exists(PLAN):
            raise BadInput(
                f"a worker does not see {location!r}: with workers on several machines, results go to a bucket or to a "
                "folder that all of them share"
            )
        self._plan, self._build = read_plan(self._store), build
        study = self._plan.study
        torch.set_num_threads(study.compute.threads)
        self._inputs = Inputs(self._store, self._plan)
        self._loaded = models.load(model or study.model, study.compute.device, study.compute.dtype)
        _refuse_other(self._plan, self._loaded)
        self._engine: tuple[str, ShardEngine, bytes] | None = None

    def compute(self, stage: str, shard: int, on_progress: OnProgress) -> Tables:
        """The means of a shard of a sample, or the norms of a shard."""
        return self._means(shard, on_progress) if stage == MEANS else self._norms(shard, on_progress)

    def check(self, stage: str, shard: int, tables: Tables) -> None:
        """Refuse norms that are not one for each prompt and wrong answer."""
        if stage == NORMS:
            ids = self._inputs.ids(self._plan.shards[shard])
            check_norms(tables, ids, self._plan.study.wrong_answers, len(self._loaded.components))

    def _means(self, number: int, on_progress: OnProgress) -> Tables:
        plan, shard = self._plan, self._plan.means[number]
        sample = self._inputs.sample(shard.task, plan.study.calibration_prompts)
        engine = self._build(self._loaded, plan, None)
        if plan.centering == "template":
            sample = [one for one in sample if one.prompt.template in shard.groups]
        calibration = engine.calibrate(sample, plan.centering, plan.batch_size, on_progress)
        return tables_from_means(calibration.tasks[shard.task])

    def _norms(self, number: int, on_progress: OnProgress) -> Tables:
        shard = self._plan.shards[number]
        engine, means = self._engine_of(shard.task)
        prompts = self._inputs.read(shard)
        batches: list[ShardTables] = []
        for rows in self._plan.batches(shard):
            batches.append(engine.compute(prompts[rows]))
            on_progress(rows.stop)
        whole = concatenated(batches)
        tables = {"prompts": whole.prompts, "norms": whole.norms.replace_schema_metadata({MEANS_KEY: means})}
        return tables if whole.moments is None else tables | {"moments": whole.moments}

    def _engine_of(self, task: str) -> tuple[ShardEngine, bytes]:
        """The engine for a task and the hash of its means; those of one task are held at a time."""
        if self._engine is None or self._engine[0] != task:
            self._engine = None
            calibration, sha256 = read_means(self._store, self._plan, task)
            self._engine = (task, self._build(self._loaded, self._plan, calibration), sha256.encode())
        return self._engine[1:]


def read_means(store: Store, plan: Plan, task: str) -> tuple[Calibration | None, str]:
    """The mean inputs of a task, as they are frozen for a study, and their hash; None of a study that centres nothing.

    Raises:
        BadInput: they are missing or damaged.
        StorageError: they cannot be read now.
    """
    below = store.below(MEANS)
    wanted = [number for number, shard in enumerate(plan.means) if shard.task == task]
    commits = read_commits(below, wanted)
    if missing := set(wanted) - {commit.shard for commit in commits}:
        raise damaged(below, f"{commit_path(min(missing))} is gone")
    shards = [{name: read_table(below, file) for name, file in commit.files.items()} for commit in commits]
    found = Calibration(plan.centering, {task: means_from_tables(shards)}) if shards else None
    return found, means_sha256(commits)


def means_sha256(commits: Sequence[Commit]) -> str:
    """Hash of the means of a task, from the commits of all their shards in order."""
    return hashlib.sha256("".join(commit.sha256 for commit in commits).encode()).hexdigest()


def _refuse_other(plan: Plan, loaded: LoadedModel) -> None:
    planned, present = plan.sources, versions()
    problems = [
        f"{name} {planned.versions[name]} -> {present[name]}"
        for name in present
        if present[name] != planned.versions[name]
    ]
    if loaded.sha256 != planned.hashes["model"]:
        problems.append(f"weights of {plan.study.model!r} {planned.hashes['model'][:12]} -> {loaded.sha256[:12]}")
    if problems:
        raise BadInput("this worker does not have what was planned: " + "; ".join(problems))
