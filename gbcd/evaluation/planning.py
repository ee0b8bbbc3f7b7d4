"""Choose what an evaluation measures: metric, pairs and nodes of every task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from gbcd import tasks
from gbcd.engine.engine import packed_for
from gbcd.errors import BadInput
from gbcd.evaluation.evaluation_plan import PAIRS_PER_BLOCK, EvaluationPlan, Request, TaskPlan
from gbcd.evaluation.measured import edge_config
from gbcd.evaluation.metrics import MEAN_SQUARED_ERROR
from gbcd.evaluation.node_sample import sampled
from gbcd.evaluation.pairs import pair_up
from gbcd.evaluation.patching import Ablation
from gbcd.evaluation.work import circuit_components
from gbcd.models.load import LoadedModel
from gbcd.prompting.prompt_shapes import TASK
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.inputs import Inputs
from gbcd.run.results import summary
from gbcd.run.shards import Plan
from gbcd.run.store import Store


def planned_evaluation(store: Store, plan: Plan, loaded: LoadedModel, request: Request, workers: int) -> EvaluationPlan:
    """Choose pairs and nodes of every task.

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
        found = _within(request.budget, found, inputs, loaded, workers)
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
    minutes: float, found: Mapping[str, TaskPlan], inputs: Inputs, loaded: LoadedModel, workers: int
) -> dict[str, TaskPlan]:
    """As many pairs of each task as fit, by the time that a forward pass takes.

    Raises:
        BadInput: not even two pairs do.
    """
    n_layers, seconds = loaded.spec.n_layers, 0.0
    for task, planned in found.items():
        layers = [int(name.split(".")[0][1:]) for name in planned.nodes]
        # nodes, from their block on; baselines, and circuits, which take about as long as the effects of all nodes
        passes = sum(n_layers - layer for layer in layers) / n_layers * len(planned.ablations) * 2 + 40
        prompts = inputs.sample(task, PAIRS_PER_BLOCK)
        packed = packed_for(loaded, [(prompt.ids,) for prompt in prompts])
        loaded.decoder.run(packed)
        started = time.perf_counter()
        loaded.decoder.run(packed)
        seconds += passes * (time.perf_counter() - started) / len(prompts)
    n_pairs = int(60 * minutes * max(1, workers) / seconds)
    if n_pairs < 2:
        raise BadInput(
            f"a budget of {minutes:g} minutes is too small: two pairs of every task take about {2 * seconds / 60:.1g}"
        )
    return {
        task: planned.model_copy(update={"n_pairs": min(planned.n_pairs, n_pairs)}) for task, planned in found.items()
    }
