"""Choose what an evaluation measures: metric, pairs and nodes of every task.

Where not all nodes are ablated, it is the best by a score, and of the others a sample that stands for them: they are
cut, in the order of the score, into runs of equal length, and of each run one node is drawn. It counts as many times as
its run is long, so figures over all nodes are those of a stratified sample, without bias.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from gbcd import tasks
from gbcd.analysis.ranking import METHODS
from gbcd.errors import BadInput
from gbcd.evaluation.baselines import every_baseline
from gbcd.evaluation.circuit_sets import Circuits, EdgeScore, EdgeTable, of_edges, of_nodes
from gbcd.evaluation.evaluation_plan import PAIRS_PER_BLOCK, EvaluationPlan, Request, TaskPlan, pair_up
from gbcd.evaluation.measured import NODE_SCORES_FOR_EDGES, edge_config
from gbcd.evaluation.metrics import MEAN_SQUARED_ERROR
from gbcd.evaluation.patching import Ablation
from gbcd.evaluation.recovery import Method, Score
from gbcd.evaluation.work import TaskWork, circuit_components, pairs_of
from gbcd.models.load import LoadedModel
from gbcd.prompting.prompt_shapes import TASK
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.inputs import Inputs
from gbcd.run.results import summary
from gbcd.run.shards import Plan
from gbcd.run.store import Store


def planned_evaluation(
    store: Store, plan: Plan, loaded: LoadedModel, request: Request, workers: int, began: float
) -> EvaluationPlan:
    """Choose pairs and nodes of every task; a budget counts from `began` on, by `time.monotonic`.

    Raises:
        BadInput: no task has two prompts that can be patched, or not two pairs fit into the budget.
    """
    inputs, found, notes = Inputs(store, plan), dict[str, TaskPlan](), list[str]()
    for task in plan.tasks:
        drawn = inputs.sample(task, request.pairs)
        pairs = pair_up(drawn, not loaded.spec.reads_every_token)
        if pairs.refused:
            notes.append(pairs.refusals(task))
        if len(pairs.usable) < 2:
            notes.append(
                f"{task}: not evaluated, since it takes 2 prompts that can be patched, and there are "
                f"{len(pairs.usable)}"
            )
            continue
        found[task] = TaskPlan(
            metric=metric_name(task, pairs.usable),
            n_drawn=len(drawn),
            n_pairs=len(pairs.usable),
            n_refused=len(pairs.refused),
            ablations=_ablations(request, pairs.usable),
            nodes=_nodes(store, task, loaded, request, plan.study.seed),
            has_edges=request.level == "node" and edge_config(loaded) is not None and not loaded.spec.reads_every_token,
        )
    if not found:
        raise BadInput(
            "no task has two prompts with a counterfactual of equal length, or a partner, to measure effects by:\n"
            + "\n".join(notes)
            + "\nGive prompts one: `counterfactual` in Filled or in a line of a prompt file; or allow partners."
        )
    if request.budget is not None:
        if workers:
            torch.set_num_threads(plan.study.compute.threads)  # what a pair takes is measured as a worker computes
        n_wrong, seed = len(plan.study.wrong_answers), plan.study.seed
        works = (
            TaskWork(loaded, task, planned, pairs_of(loaded, inputs, task, planned.n_drawn), request.level, seed)
            for task, planned in found.items()
        )
        seconds = sum(seconds_per_pair(loaded, work, found[work.name], n_wrong) for work in works)
        spent = (time.monotonic() - began) / 60
        found = _within(request.budget, spent, found, seconds, workers)
    return EvaluationPlan(request=request, tasks=found, notes=tuple(notes))


def _ablations(request: Request, prompts: Sequence[EncodedPrompt]) -> tuple[Ablation, ...]:
    """Those asked for; where prompts have nothing to be resampled from, the mean takes its place."""
    if prompts[0].reference_ids is not None:
        return request.ablations
    return tuple(dict.fromkeys("mean" if one == "resample" else one for one in request.ablations))


def _nodes(store: Store, task: str, loaded: LoadedModel, request: Request, seed: int) -> dict[str, int]:
    names = [component.name for component in circuit_components(loaded, request.level)]
    rows = summary(store.location).filter(task=task, level=request.level).collect()
    scores = dict(
        rows.filter(pl.col("wrong_answer") == rows["wrong_answer"][0]).select("component", "score").iter_rows()
    )
    return sampled(names, np.array([scores[name] or 0.0 for name in names]), request.top, seed)


def metric_name(task: str, prompts: Sequence[EncodedPrompt]) -> str:
    """The metric that effects of a task are measured by."""
    if task != TASK:
        return tasks.get(task).metric
    if prompts[0].outputs is not None:
        return MEAN_SQUARED_ERROR
    return "logit_difference" if all(prompt.wrong_ids for prompt in prompts) else "negative_log_probability"


def _within(
    minutes: float, spent: float, found: Mapping[str, TaskPlan], seconds: float, workers: int
) -> dict[str, TaskPlan]:
    """As many pairs of each task as fit into what is left, where one of each takes so many seconds. A block is computed
    by one worker.

    Raises:
        BadInput: not even two do.
    """
    of_worker = int(60 * max(0.0, minutes - spent) / seconds)
    n_pairs = max(1, workers) * (of_worker - of_worker % PAIRS_PER_BLOCK) + of_worker % PAIRS_PER_BLOCK
    if n_pairs < 2:
        raise BadInput(
            f"a budget of {minutes:g} minutes is too small: two pairs of every task take about "
            f"{spent + 2 * seconds / 60:.1g}"
        )
    return {
        task: planned.model_copy(update={"n_pairs": min(planned.n_pairs, n_pairs)}) for task, planned in found.items()
    }


def seconds_per_pair(loaded: LoadedModel, task: TaskWork, planned: TaskPlan, n_wrong: int) -> float:
    """What a pair takes, measured on a block: baselines, nodes of three layers, and the circuits of drawn scores.

    The nodes of a layer are taken to cost what the blocks from theirs on do, and no two scores to share a circuit,
    which of the smallest and the largest is not so: it is rather less.
    """
    some, rng = task.prompts[len(task.prompts) // 2 :][:PAIRS_PER_BLOCK], np.random.default_rng(0)
    batch, layers = task.batch(some), sorted({place.layer for place in task.ablated})
    few = [place for place in task.ablated if place.layer in layers[:: max(1, len(layers) // 3)]]
    blocks, few_blocks = (sum(loaded.spec.n_layers - one.layer for one in places) for places in (task.ablated, few))
    drawn = Method("drawn", None, 0.0)
    circuits, n_scores = Circuits(), n_wrong * len(METHODS) + len(every_baseline())
    of_nodes(circuits, Score(drawn, rng.random((1, len(task.components)))))
    parts: list[tuple[float, Callable[[], object]]] = [
        (1.0, lambda: task.baselines(some)),
        (blocks / few_blocks, lambda: [batch.drops(few, ablation) for ablation in planned.ablations]),
        (n_scores, lambda: task.circuits(some, {"nodes": circuits.lists("nodes"), "edges": []})),
    ]
    cfg = edge_config(loaded)
    if planned.has_edges and cfg is not None:
        table = EdgeTable(cfg)
        of_edges(circuits, table, EdgeScore(drawn, rng.random(table.n)), "size")
        # edges of baselines and of the study are ranked in three ways, scores of nodes in two
        n_cuts = 3 * (n_wrong + sum(one.edges is not None for one in every_baseline().values()))
        n_cuts += 2 * (1 + n_wrong * len(NODE_SCORES_FOR_EDGES))
        parts.append((n_cuts, lambda: task.circuits(some, {"nodes": [], "edges": circuits.lists("edges")})))
    return sum(times * _seconds(run) for times, run in parts) / len(some)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def sampled(names: Sequence[str], scores: Float[np.ndarray, " nodes"], top: int | None, seed: int) -> dict[str, int]:
    """Nodes to be measured, in the order of `names`, and for how many each stands.

    Args:
        names: of all nodes.
        scores: what they are ordered by.
        top: how many of the best; the sample of the others is as large at most. None measures all.
        seed: fixes the draw.
    """
    if top is None or top >= len(names):
        return dict.fromkeys(names, 1)
    order = np.argsort(-scores, kind="stable")
    weights = dict.fromkeys(order[:top].tolist(), 1)
    rng = np.random.default_rng(seed)
    for run in np.array_split(order[top:], min(top, len(names) - top)):
        weights[int(rng.choice(run))] = len(run)
    return {name: weights[index] for index, name in enumerate(names) if index in weights}
