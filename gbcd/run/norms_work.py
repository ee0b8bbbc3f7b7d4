"""The work of a study: first the mean inputs of every task, then the norms of every shard of prompts.

Centred norms subtract mean inputs, which are measured on a sample of each task (`calibration/`, a shard for some of its
templates, so that all workers measure means and no sum is merged) and from then on frozen for the study: the norms of a
shard name the means that they were taken against.
Workers read the means from the results folder, one task at a time, and never through the driver.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.calibration import Calibration, TaskMeans
from gbcd.engine.engine import Engine
from gbcd.engine.tables import FAILED, NON_FINITE, PROMPTS, STATISTICS, ShardTables, concatenated, norms_schema
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.run.commits import Commit, commit_path, damaged, read_commits, read_table
from gbcd.run.inputs import Inputs
from gbcd.run.own_definitions import DefinitionFile, import_definitions
from gbcd.run.shards import PLAN, Plan, read_plan
from gbcd.run.store import Store
from gbcd.run.work import OnProgress, Stage, Tables, UnsoundShardError
from gbcd.study import Study
from gbcd.versions import versions

#: Folders of the two stages.
MEANS, NORMS = "calibration", ""

#: In the metadata of the table of norms: SHA-256 of the means that they were taken against.
MEANS_KEY = b"calibration"

_KEYS = ("prompt_id", "wrong_answer")

_SAMPLE = pa.schema([("prompt_id", pa.string()), ("group", pa.string()), ("tokens", pa.list_(pa.int32()))])
_MEANS = pa.schema([("name", pa.string()), ("group", pa.string()), ("n_positions", pa.int32())]).append(
    pa.field("means", pa.large_list(pa.float32()))  # of all positions of a large model: more than 2 ** 31 values
)
"""A row for each input and group of a shard of a sample; `_SAMPLE` has the tokens of its prompts."""


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
        Stage(NORMS, tuple(shard.n_prompts for shard in plan.shards), title="Scores"),
    )


class NormsWork:
    """The work of one plan, in a worker."""

    def __init__(
        self, location: str, model: str | None = None, definitions: Sequence[DefinitionFile] = (), share: float = 1.0
    ) -> None:
        """Read the plan and load the model.

        Args:
            location: the results folder.
            model: where the model lies now; None where it lies as the plan says.
            definitions: files that define what the study names.
            share: of a GPU that it has.

        Raises:
            BadInput: this machine does not see the results folder, or has other versions or weights than the plan.
        """
        import_definitions(definitions)
        self._store = Store(location)
        if not self._store.exists(PLAN):
            raise BadInput(
                f"a worker does not see {location!r}: with workers on several machines, results go to a bucket or to a "
                "folder that all of them share"
            )
        self._plan = read_plan(self._store)
        study = self._plan.study
        torch.set_num_threads(study.compute.threads)
        self._inputs = Inputs(self._store, self._plan)
        self._loaded = models.load(model or study.model, study.compute.device, study.compute.dtype, share)
        _refuse_other(self._plan, self._loaded)
        self._of_task: tuple[str, Engine, bytes] | None = None

    def engine(self, calibration: Calibration | None) -> Engine:
        """The gradient engine."""
        return engine_of(self._loaded, self._plan.study, calibration)

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
        if plan.centering == "template":
            sample = [one for one in sample if one.prompt.template in shard.groups]
        calibration = self.engine(None).calibrate(sample, plan.centering, plan.batch_size, on_progress)
        return tables_from_means(calibration.tasks[shard.task])

    def _norms(self, number: int, on_progress: OnProgress) -> Tables:
        shard = self._plan.shards[number]
        if self._of_task is None or self._of_task[0] != shard.task:
            self._of_task = None  # the means of one task are held at a time
            calibration, sha256 = read_means(self._store, self._plan, shard.task)
            self._of_task = shard.task, self.engine(calibration), sha256.encode()
        _, engine, means = self._of_task
        prompts, batches = self._inputs.read(shard), list[ShardTables]()
        for rows in self._plan.batches(shard):
            batches.append(engine.compute(prompts[rows]))
            on_progress(rows.stop)
        whole = concatenated(batches)
        tables = {"prompts": whole.prompts, "norms": whole.norms.replace_schema_metadata({MEANS_KEY: means})}
        return tables if whole.moments is None else tables | {"moments": whole.moments}


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


def tables_from_means(means: TaskMeans) -> Tables:
    """The tables of a task's means."""
    sample = {
        "prompt_id": list(means.members),
        "group": [means.groups[group] for group in means.token_groups.tolist()],
        "tokens": [[token for token in tokens if token >= 0] for tokens in means.tokens.tolist()],
    }
    rows = [
        (name, group, len(mean), mean.numpy().ravel())
        for name, of_groups in means.means.items()
        for group, mean in zip(means.groups, of_groups, strict=True)
    ]
    return {
        "sample": pa.table(sample, schema=_SAMPLE),
        "means": pa.table(dict(zip(_MEANS.names, zip(*rows, strict=True), strict=True)), schema=_MEANS),
    }


def means_from_tables(shards: Sequence[Tables]) -> TaskMeans:
    """The means of a task from all of its shards, each as `tables_from_means` wrote it."""
    sample = pa.concat_tables(shard["sample"] for shard in shards)
    group_of, tokens_of = sample["group"].to_pylist(), sample["tokens"].to_pylist()
    groups = tuple(sorted(set(group_of)))
    length = max(map(len, tokens_of))
    tokens = torch.full((len(tokens_of), length), -1)
    for row, found in zip(tokens, tokens_of, strict=True):
        row[: len(found)] = torch.tensor(found)
    return TaskMeans(
        groups=groups,
        means=_means([shard[name] for shard in shards for name in shard if name != "sample"], groups, length),
        tokens=tokens,
        token_groups=torch.tensor([groups.index(group) for group in group_of]),
        members=tuple(sample["prompt_id"].to_pylist()),
    )


def _means(
    tables: Sequence[pa.Table], groups: Sequence[str], length: int
) -> dict[str, Float[Tensor, "group {length} d_in"]]:
    """By name of the input; groups of shorter prompts end in zeros, which no prompt of theirs reaches."""
    found: dict[str, Tensor] = {}
    for table in tables:
        for name, group, n_positions, values in zip(*table.itercolumns(), strict=True):
            mean = torch.tensor(values.values.to_numpy()).view(n_positions.as_py(), -1)
            if name.as_py() not in found:
                found[name.as_py()] = mean.new_zeros(len(groups), length, mean.shape[1])
            found[name.as_py()][groups.index(group.as_py()), : len(mean)] = mean
    return found


def means_sha256(commits: Sequence[Commit]) -> str:
    """Hash of the means of a task, from the commits of all their shards in order."""
    return hashlib.sha256("".join(commit.sha256 for commit in commits).encode()).hexdigest()


def check_norms(tables: Tables, ids: Sequence[str], wrong_answers: Sequence[str], n_components: int) -> None:
    """Refuse tables of prompts and norms that lack a prompt or hold a value that is neither finite nor flagged.

    Raises:
        UnsoundShardError: says what is wrong.
    """
    schemas = {"prompts": PROMPTS, "norms": norms_schema(n_components)}
    if missing := schemas.keys() - tables.keys():
        raise UnsoundShardError(f"there is no table of {' and '.join(sorted(missing))}")
    wanted = pl.DataFrame({"prompt_id": ids}).join(pl.DataFrame({"wrong_answer": wrong_answers}), how="cross")
    for name, schema in schemas.items():
        table = tables[name]
        if not table.schema.equals(schema):
            raise UnsoundShardError(f"{name} has the schema\n{table.schema}\nnot\n{schema}")
        if not _columns(table, *_KEYS).sort(_KEYS).equals(wanted.sort(_KEYS)):
            raise UnsoundShardError(
                f"{name} has {table.num_rows} rows, not one for each of {len(ids)} prompts and {len(wrong_answers)} "
                "wrong answers"
            )
    statuses = _columns(tables["prompts"], *_KEYS, "status")
    status = _columns(tables["norms"], *_KEYS).join(statuses, _KEYS, maintain_order="left")["status"]
    has_values = ~status.is_in([NON_FINITE, FAILED]).to_numpy()
    for statistic in STATISTICS:
        lists = tables["norms"][statistic].combine_chunks()
        if not np.isfinite(lists.flatten().to_numpy(zero_copy_only=False)).all():
            raise UnsoundShardError(f"{statistic} holds values that are not finite")
        present = np.asarray(lists.is_valid())
        if (present & ~has_values).any() or (statistic == "grad_norm" and not present[has_values].all()):
            raise UnsoundShardError(f"{statistic} is present in other rows than their status says")


def _columns(table: pa.Table, *names: str) -> pl.DataFrame:
    return cast(pl.DataFrame, pl.from_arrow(table.select(names)))


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
