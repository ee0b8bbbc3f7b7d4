"""What an evaluation measures, written once: asked again, the same evaluation goes on where it stopped.

An evaluation lies in `evaluation/KEY/` below the results it judges; the key is made of what was asked for and of what
it was asked of, so another question is another evaluation beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from gbcd.evaluation.patching import Ablation
from gbcd.evaluation.places import Level
from gbcd.run.commits import read_record
from gbcd.run.own_definitions import DefinitionFile
from gbcd.run.settling import Device
from gbcd.run.shards import Plan
from gbcd.run.store import Store
from gbcd.run.work import Stage

#: Prompts of a shard, which run together; few, so that an evaluation of sixteen pairs has work for two workers.
PAIRS_PER_BLOCK = 8

_PLAN = "evaluation.json"


class Request(BaseModel):
    """What was asked for.

    Attributes:
        pairs: prompts of each task at most.
        budget: minutes, which pairs are chosen to fit.
        ablations: how nodes are ablated.
        top: nodes that are ablated beside a sample of the others; None for all.
        level: whether heads and MLPs are ablated, or their parts.
        device: where it is computed, which need not be the study's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: int
    budget: float | None = None
    ablations: tuple[Ablation, ...] = ("resample",)
    top: int | None = None
    level: Level = "node"
    device: Device = "cpu"


class TaskPlan(BaseModel):
    """What is measured of a task.

    Attributes:
        metric: that of the task.
        n_drawn: prompts that were looked at.
        n_pairs: those of them that can be patched.
        n_refused: the others.
        ablations: those of the request that its prompts allow.
        nodes: which nodes (or parts) are ablated, and for how many each stands.
        has_edges: whether edges are scored.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    n_drawn: int
    n_pairs: int
    n_refused: int
    ablations: tuple[Ablation, ...]
    nodes: dict[str, int]
    has_edges: bool


class Block(NamedTuple):
    """Some pairs of a task."""

    task: str
    start: int
    stop: int


class EvaluationPlan(BaseModel):
    """The whole of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: Request
    tasks: dict[str, TaskPlan]
    notes: tuple[str, ...]

    def blocks(self) -> Iterator[Block]:
        """Shards of both stages, in order."""
        for task, planned in self.tasks.items():
            for start in range(0, planned.n_pairs, PAIRS_PER_BLOCK):
                yield Block(task, start, min(start + PAIRS_PER_BLOCK, planned.n_pairs))

    def effects_stage(self, folder: str) -> Stage:
        """Ablation of nodes, and the baselines."""
        per_pair = {name: len(task.nodes) * len(task.ablations) for name, task in self.tasks.items()}
        sizes = tuple((stop - start) * per_pair[task] for task, start, stop in self.blocks())
        return Stage(stage_folder(folder, "effects"), sizes, "effect", "Effects of ablation")

    def circuits_stage(self, folder: str, n_runs: dict[str, int]) -> Stage:
        """Circuits; `n_runs` of each task."""
        sizes = tuple((stop - start) * n_runs[task] for task, start, stop in self.blocks())
        return Stage(stage_folder(folder, "circuits"), sizes, "run", "Circuits")


def stage_folder(folder: str, stage: Literal["effects", "circuits"]) -> str:
    """Where the shards of a stage lie."""
    return f"{folder}/{stage}"


def evaluation_folder(request: Request, plan: Plan, files: tuple[DefinitionFile, ...]) -> str:
    """Where an evaluation lies."""
    said = [request.model_dump_json(), plan.model_dump_json(), *(file.sha256 for file in files)]
    return f"evaluation/{hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:12]}"


def read_evaluation_plan(store: Store, folder: str) -> EvaluationPlan | None:
    """The plan in a folder, if there is one.

    Raises:
        StorageError: it is damaged.
    """
    return read_record(store, f"{folder}/{_PLAN}", EvaluationPlan)


def write_evaluation_plan(store: Store, folder: str, planned: EvaluationPlan) -> EvaluationPlan:
    """Write the plan, unless somebody else has; returns the one that holds."""
    store.create(f"{folder}/{_PLAN}", planned.model_dump_json(indent=1).encode())
    return read_evaluation_plan(store, folder) or planned
