"""The work of an evaluation, in a worker: effects and baselines of a block of pairs, and later its circuits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from gbcd.analysis.circuits import Config, n_edges
from gbcd.analysis.nodes import NodeMap
from gbcd.component import Component
from gbcd.engine.engine import packed_for
from gbcd.errors import BadInput
from gbcd.evaluation.baselines import every_baseline
from gbcd.evaluation.circuit_sets import Kind, read_circuits
from gbcd.evaluation.evaluation_plan import PAIRS_PER_BLOCK, Block, TaskPlan, pair_up, read_evaluation_plan
from gbcd.evaluation.metrics import Metric, metric_for, metric_of
from gbcd.evaluation.patching import Means, PatchedBatch, position_means
from gbcd.evaluation.places import Level, places_of
from gbcd.evaluation.score_context import ScoreContext
from gbcd.models import load as models
from gbcd.models.edge_runs import CircuitRuns
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.inputs import Inputs
from gbcd.run.own_definitions import DefinitionFile, import_definitions
from gbcd.run.settling import Device
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store
from gbcd.run.work import OnProgress, Tables, UnsoundShardError

#: Bytes that what nodes write may take while circuits of edges run.
EDGE_RUN_BYTES = 512 * 1024**2


class EvaluationWork:
    """Computes shards of one evaluation."""

    def __init__(
        self, location: str, folder: str, files: Sequence[DefinitionFile], threads: int | None, share: float
    ) -> None:
        """Read both plans and load the model, for which there is a `share` of a GPU.

        Raises:
            BadInput: the model has other weights than the study's.
        """
        import_definitions(files)
        if threads is not None:
            torch.set_num_threads(threads)
        self._store, self._folder = Store(location), folder
        plan, planned = read_plan(self._store), read_evaluation_plan(self._store, folder)
        if planned is None:
            raise BadInput(f"a worker does not see {location!r}: with workers on several machines, use a bucket")
        self._plan, self._planned, self._blocks = plan, planned, list(planned.blocks())
        self._loaded = load_model(self._store, plan, planned.request.device, share)
        self._inputs = Inputs(self._store, plan)
        self._task: TaskWork | None = None

    def compute(self, stage: str, shard: int, on_progress: OnProgress) -> Tables:
        """The tables of one block of pairs."""
        block, task = self._blocks[shard], self._task_of(self._blocks[shard])
        prompts = task.prompts[block.start : block.stop]
        done = [0]

        def progressed(n: int) -> None:
            done[0] += n
            on_progress(done[0])

        if stage.endswith("effects"):
            return halved(prompts, lambda some: task.effects(some, progressed))
        circuits = read_circuits(self._store, self._folder, block.task)
        return halved(prompts, lambda some: task.circuits(some, circuits, progressed))

    def check(self, stage: str, shard: int, tables: Tables) -> None:
        """Refuse tables without a row for each prompt."""
        block = self._blocks[shard]
        name = "effects" if stage.endswith("effects") else "circuits"
        if tables[name].num_rows != block.stop - block.start:
            raise UnsoundShardError(f"{tables[name].num_rows} rows for {block.stop - block.start} pairs")

    def _task_of(self, block: Block) -> TaskWork:
        if self._task is None or self._task.name != block.task:
            planned = self._planned.tasks[block.task]
            prompts = pairs_of(self._loaded, self._inputs, block.task, planned.n_drawn, planned.n_pairs)
            level, seed = self._planned.request.level, self._plan.study.seed
            self._task = TaskWork(self._loaded, block.task, planned, prompts, level, seed)
        return self._task


class TaskWork:
    """What is computed of one task.

    Attributes:
        prompts: its pairs, the longest first.
        components: heads and MLPs, or their parts.
        places: where they are.
        ablated: those of the places whose effects are measured.
    """

    def __init__(
        self, loaded: LoadedModel, name: str, planned: TaskPlan, prompts: list[EncodedPrompt], level: Level, seed: int
    ) -> None:
        """Means are taken where they are needed; nothing else runs yet."""
        self.name, self.prompts, self._loaded, self._planned, self._seed = name, prompts, loaded, planned, seed
        self.components, self.places = circuit_components(loaded, level), places_of(loaded.components, level)
        self.ablated = [place for place in self.places if place.name in planned.nodes]
        self._means: Means | None = None
        if "mean" in planned.ablations or prompts[0].reference_ids is None:
            self._means = position_means(loaded, prompts, self.places, PAIRS_PER_BLOCK)

    def effects(self, prompts: Sequence[EncodedPrompt], progressed: OnProgress) -> Tables:
        """Effects of ablation, and the baselines."""
        batch = self.batch(prompts)
        columns = {"clean": batch.clean, "counterfactual": batch.other}
        shared = batch.passes
        for ablation in self._planned.ablations:
            before = batch.passes - shared
            columns[ablation] = batch.drops(self.ablated, ablation, progressed)
            columns[f"{ablation}_passes"] = np.full(len(prompts), batch.passes - before)
        return {"effects": _table(prompts, columns), **self.baselines(prompts)}

    def baselines(self, prompts: Sequence[EncodedPrompt]) -> Tables:
        """Their values, and sums over the pairs of those that edges have."""
        metric, with_edges = self._metric_of(prompts), self._planned.has_edges
        context = ScoreContext(self._loaded, prompts, self.components, self.places, metric, self._seed, with_edges)
        has_references = all(prompt.reference_ids is not None for prompt in prompts)
        values: dict[str, np.ndarray] = {}
        edges: list[dict[str, Any]] = []
        for name, one in every_baseline().items():
            if one.needs_counterfactual and not has_references:
                continue
            values[name] = np.broadcast_to(one.values(context), (len(prompts), len(self.components)))
            of_edges = one.edges(context) if one.edges is not None and with_edges else None
            if of_edges is not None:
                edges.append({"method": name, "n": len(prompts), "sum": of_edges.double().sum(0).tolist()})
        return {"baselines": _table(prompts, values), "edges": pa.Table.from_pylist(edges, schema=_EDGES)}

    def circuits(
        self,
        prompts: Sequence[EncodedPrompt],
        circuits: Mapping[Kind, Sequence[Sequence[int]]],
        progressed: OnProgress = lambda n: None,
    ) -> Tables:
        """The metric of circuits, each a list of what is inside."""
        batch = self.batch(prompts)
        everything = set(range(len(self.places)))
        outside = [[self.places[index] for index in sorted(everything - set(one))] for one in circuits["nodes"]]
        ablation = "resample" if prompts[0].reference_ids is not None else "mean"
        columns = {"clean": batch.clean, "counterfactual": batch.other}
        columns["nodes"] = batch.patched(outside, ablation) if outside else np.zeros((len(prompts), 0))
        progressed(len(prompts) * len(outside))
        metric = self._metric_of(prompts)
        columns["edges"] = circuit_metrics(self._loaded, prompts, metric, circuits["edges"], progressed)
        return {"circuits": _table(prompts, columns)}

    def batch(self, prompts: Sequence[EncodedPrompt]) -> PatchedBatch:
        """Some prompts, to be patched."""
        return PatchedBatch(self._loaded, prompts, self.places, self._metric_of(prompts), self._means)

    def _metric_of(self, prompts: Sequence[EncodedPrompt]) -> Metric:
        return metric_for(self._planned.metric, prompts, self._loaded.device, space_of(self._loaded.tokenizer))


def circuit_metrics(
    loaded: LoadedModel,
    prompts: Sequence[EncodedPrompt],
    metric: Metric,
    circuits: Sequence[Sequence[int]],
    progressed: OnProgress = lambda n: None,
) -> Float[np.ndarray, "prompt circuit"]:
    """The metric of circuits of edges, each a list of the edges inside, on prompts with counterfactuals."""
    found = np.zeros((len(prompts), len(circuits)))
    cfg = Config.of(loaded.components, loaded.spec.parallel)
    if not circuits or cfg is None:
        return found
    n_sources, table = 1 + loaded.spec.n_layers * (loaded.spec.n_heads + 1), loaded.decoder.token_table
    # what nodes write on a prompt, on its counterfactual, and the change
    n_tokens = EDGE_RUN_BYTES // (3 * n_sources * table.shape[1] * table.element_size())
    n_pairs = max(1, n_tokens // max(len(prompt.ids) for prompt in prompts))
    # those that run together are of like size, since what runs in one of them runs in all
    by_size = sorted(range(len(circuits)), key=lambda circuit: len(circuits[circuit]))
    for start in range(0, len(prompts), n_pairs):
        some = prompts[start : start + n_pairs]
        both = ([(prompt.ids,) for prompt in some], [(prompt.reference_ids or (),) for prompt in some])
        runs = CircuitRuns(loaded.decoder, *(packed_for(loaded, sequences) for sequences in both))
        rows, n_circuits = list(range(start, start + len(some))), max(1, n_tokens // (len(some) * runs.n_rows))
        for first in range(0, len(circuits), n_circuits):
            chosen = by_size[first : first + n_circuits]
            inside = torch.zeros(len(chosen), n_edges(cfg), dtype=torch.bool, device=loaded.device)
            for members, circuit in zip(inside, chosen, strict=True):
                members[list(circuits[circuit])] = True
            values = metric_of(metric, runs.logits(inside).flatten(0, 1), rows * len(chosen))
            found[np.ix_(rows, chosen)] = values.reshape(len(chosen), len(rows)).T
            progressed(2 * len(some) * len(chosen))
    return found


def circuit_components(loaded: LoadedModel, level: Level) -> list[Component]:
    """Heads and MLPs, or their parts, in the order of `places_of`."""
    everything = loaded.components if level == "part" else NodeMap.of(loaded.components).nodes
    return [component for component in everything if component.is_circuit_part]


def pairs_of(
    loaded: LoadedModel, inputs: Inputs, task: str, n_drawn: int, at_most: int | None = None
) -> list[EncodedPrompt]:
    """The pairs of a task among so many prompts, the longest first."""
    return pair_up(inputs.sample(task, n_drawn), not loaded.spec.reads_every_token, at_most).usable


def load_model(store: Store, plan: Plan, device: Device, share: float = 1.0) -> LoadedModel:
    """The model of a study, on a device, of whose memory it has a `share` if that is a GPU.

    Raises:
        BadInput: it is not available, or has other weights than it had.
    """
    loaded = _loaded(plan.study.model, device, plan.study.compute.dtype, share)
    if loaded.sha256 != plan.sources.hashes["model"]:
        raise BadInput(
            f"{store.location!r} is of another model: {plan.study.model!r} had weights "
            f"{plan.sources.hashes['model'][:12]} and has {loaded.sha256[:12]} now"
        )
    return loaded


@lru_cache(maxsize=1)
def _loaded(model: str, device: str, dtype: str, share: float) -> LoadedModel:
    """One for all stages of an evaluation in one process."""
    return models.load(model, device, dtype, share)


def halved(prompts: Sequence[EncodedPrompt], compute: Callable[[Sequence[EncodedPrompt]], Tables]) -> Tables:
    """The tables of prompts; where they do not fit into memory, those of their halves, one after the other."""
    try:
        return compute(prompts)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or "memory" in str(error)
        if len(prompts) == 1 or not is_memory:
            raise
    # outside the handler, which would keep the failed attempt's tensors alive
    gc.collect()
    middle = len(prompts) // 2
    halves = [halved(some, compute) for some in (prompts[:middle], prompts[middle:])]
    return {name: pa.concat_tables([half[name] for half in halves]) for name in halves[0]}


_EDGES = pa.schema([("method", pa.string()), ("n", pa.int64()), ("sum", pa.list_(pa.float64()))])


def _table(prompts: Sequence[EncodedPrompt], columns: Mapping[str, Float[np.ndarray, " prompt *rest"]]) -> pa.Table:
    """One row per prompt; numbers, or lists of numbers."""
    keys = {"prompt_id": [p.prompt.id for p in prompts], "template": [p.prompt.template for p in prompts]}
    kinds = {name: pa.float64() if values.ndim == 1 else pa.list_(pa.float64()) for name, values in columns.items()}
    found = {name: pa.array(values.tolist(), kinds[name]) for name, values in columns.items()}
    return pa.table({**keys, **found})
