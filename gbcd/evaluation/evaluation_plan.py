"""What an evaluation measures, written once: asked again, the same evaluation goes on where it stopped.

Prompts can be patched that have a counterfactual, or a partner, of as many tokens. Those of all lengths share blocks,
sorted by length, since padding stands on the right and nobody sees it; the longest come first, so that no worker waits
for the last. Compiled programs have no counterfactuals: what is taken out of their prompts is replaced by means.

An evaluation lies in `evaluation/KEY/` below the results it judges; the key is made of what was asked for and of what
it was asked of, so another question is another evaluation beside it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from gbcd.errors import listed
from gbcd.evaluation.patching import Ablation
from gbcd.evaluation.places import Level
from gbcd.printing import counted
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.commits import read_record
from gbcd.run.own_definitions import DefinitionFile
from gbcd.run.settling import Device
from gbcd.run.shards import Plan
from gbcd.run.store import Store
from gbcd.run.work import Stage

#: Prompts of a shard, which run together; few, so that two workers share sixteen pairs of unlike lengths evenly.
PAIRS_PER_BLOCK = 4

_PLAN = "evaluation.json"

StageName = Literal["effects", "circuits"]


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


def stage_folder(folder: str, stage: StageName) -> str:
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


class Pairs(NamedTuple):
    """Prompts of a task that can be patched, the longest first; and of each of the others its id and the reason."""

    usable: list[EncodedPrompt]
    refused: list[str]

    def refusals(self, task: str) -> str:
        """Who cannot be patched, and why: one line where all have the same reason."""
        reasons = Counter(text.partition(": ")[2] for text in self.refused)
        if len(reasons) == 1:
            first = self.refused[0] if len(self.refused) == 1 else f"the first is {self.refused[0]}"
            return f"{task}: {counted(len(self.refused), 'prompt')} cannot be patched, {first}"
        return f"{task}: {counted(len(self.refused), 'prompt')} cannot be patched:\n{listed(self.refused)}"


def pair_up(encoded: Sequence[EncodedPrompt], needs_reference: bool = True, at_most: int | None = None) -> Pairs:
    """Sort out the prompts that can be patched; of more than `at_most` the first, which are a random draw."""
    if not needs_reference:
        # compiled programs are compared with means throughout, whether or not a partner was drawn
        encoded = [replace(prompt, counterfactual_ids=None, partner_ids=None) for prompt in encoded]
    usable = [prompt for prompt in encoded if prompt.reference_ids is not None or not needs_reference]
    refused = [_refusal(prompt) for prompt in encoded if prompt.reference_ids is None and needs_reference]
    return Pairs(sorted(usable[:at_most], key=lambda prompt: -len(prompt.ids)), refused)


def _refusal(encoded: EncodedPrompt) -> str:
    if encoded.counterfactual_ids is None:
        return f"{encoded.prompt.id}: no counterfactual, and no partner"
    lengths = f"{len(encoded.ids)} tokens, but {len(encoded.counterfactual_ids)} in its counterfactual"
    return f"{encoded.prompt.id}: {lengths}, and no partner"
