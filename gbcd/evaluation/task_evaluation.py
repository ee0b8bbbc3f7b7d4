"""Evaluate one task: effects, truths, every score and baseline against them, circuits by size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gbcd import tasks
from gbcd.analysis.circuits import Circuit, Config, circuit_of_edges, circuit_of_nodes
from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.component import Component
from gbcd.evaluation.aggregation import aggregation_rows
from gbcd.evaluation.agreement import largest
from gbcd.evaluation.attribution import Attribution, attribute
from gbcd.evaluation.baselines import Asked, attribution_scores, baseline_scores
from gbcd.evaluation.edges import edge_attribution
from gbcd.evaluation.faithfulness import CircuitRunner, faithfulness_curves, taken_apart
from gbcd.evaluation.interventions import Effects, measure_effects
from gbcd.evaluation.metrics import MEAN_SQUARED_ERROR, Metric, metric_for
from gbcd.evaluation.pairs import Pairs
from gbcd.evaluation.places import Level, places_of
from gbcd.evaluation.recovery import Score, Truth, measured_truth, published_truth, recovery_rows
from gbcd.evaluation.replicas import interval, means
from gbcd.evaluation.steps import Watch, of_task
from gbcd.evaluation.tables import edges_file
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt_shapes import TASK


class Case(NamedTuple):
    """One task, ready to be measured.

    Attributes:
        task: its name.
        pairs: prompts with counterfactuals, two or more.
        components: parts or nodes, as they are to be listed.
        weights: of the pairs, in the estimate and its replicas.
        scores: of the components, by gradients.
        per_prompt: what these are means of, by wrong answer and statistic, for some of the prompts.
        ranked_by: name of the score in the study's summary, by wrong answer.
    """

    task: str
    pairs: Pairs
    components: list[Component]
    weights: Float[np.ndarray, "replicas prompts"]
    scores: list[Score]
    per_prompt: dict[str, dict[str, Float[np.ndarray, "components prompts"]]]
    ranked_by: dict[str, str | None]

    @property
    def default_scores(self) -> list[Score]:
        """Those of the statistic that components are ranked by, one for each wrong answer."""
        return [score for score in self.scores if score.method == self.ranked_by.get(str(score.wrong_answer))]


class TaskEvaluation(NamedTuple):
    """Rows of the tables, and circuits with edges of their own by file name."""

    figures: list[dict[str, Any]]
    effects: list[dict[str, Any]]
    faithfulness: list[dict[str, Any]]
    aggregation: list[dict[str, Any]]
    circuits: dict[str, Circuit]


def evaluate_task(loaded: LoadedModel, case: Case, level: Level, seed: int, watch: Watch) -> TaskEvaluation:
    """Measure effects, hold every score against them, and run the circuits that the scores give."""
    places = places_of(loaded.components, level)
    metric = metric_for(_metric_name(case), case.pairs.encoded, loaded.device, space_of(loaded.tokenizer))
    watch = of_task(watch, case.task)
    effects = measure_effects(loaded, case.pairs, places, metric, watch=watch)
    attributions: dict[str, Attribution] = {}
    asked = Asked(loaded, case.pairs, case.components, np.random.default_rng(seed))
    scores = [*case.scores, *baseline_scores(asked, case.weights)]
    if case.pairs.are_pairs:
        watch("attributions", 0, 1)
        attributions = attribute(loaded, case.pairs, places, metric, with_direct=level == "node")
        scores += attribution_scores(attributions, case.weights)
    truths = _truths(case, effects, loaded.name, level)
    first = next(iter(effects.drops.values())).mean(axis=0)
    figures = list(recovery_rows(scores, truths, _groups(case.components)))
    runner = CircuitRunner(loaded, case.pairs, places, metric, case.weights, watch)
    curves = faithfulness_curves(runner, scores)
    for score in case.default_scores:
        figures += taken_apart(runner, score, seed)
    watch("edges of circuits", 0, 1)
    shared = {"task": case.task, "n_pairs": len(case.pairs.encoded)}
    counted = {**shared, "n_components": len(case.components)}
    return TaskEvaluation(
        [{**counted, **row} for row in [*figures, *curves.figures]],
        [{**shared, **row} for row in _effect_rows(case, effects, attributions)],
        [{"task": case.task, **row} for row in curves.rows],
        [
            {"task": case.task, "wrong_answer": wrong_answer, **row}
            for wrong_answer, values in case.per_prompt.items()
            for row in aggregation_rows(values, first, truths[0].members[0])
        ],
        _circuits(loaded, case, metric) if level == "node" and case.pairs.are_pairs else {},
    )


def _circuits(loaded: LoadedModel, case: Case, metric: Metric) -> dict[str, Circuit]:
    """The circuit of each default score, its edges scored by edge attribution."""
    cfg = Config.of(loaded.components, loaded.spec.parallel)
    if cfg is None or None in loaded.spec.mlps:
        return {}
    edges, names = edge_attribution(loaded, case.pairs, metric, cfg), [node.name for node in case.components]
    found: dict[str, Circuit] = {}
    for score in case.default_scores:
        values = score.replicas[0]
        members = [names[index] for index in largest(values, CIRCUIT_SHARE)]
        scores = dict(zip(names, values.tolist(), strict=True))
        found[edges_file(case.task, str(score.wrong_answer))] = circuit_of_edges(
            cfg, scores, {edge: edges[edge] for edge in circuit_of_nodes(cfg, scores, members).edges}
        )
    return found


def _metric_name(case: Case) -> str:
    if case.task != TASK:
        return tasks.get(case.task).metric
    if case.pairs.encoded[0].outputs is not None:
        return MEAN_SQUARED_ERROR
    compares = all(prompt.wrong_ids for prompt in case.pairs.encoded)
    return "logit_difference" if compares else "negative_log_probability"


def _truths(case: Case, effects: Effects, model: str, level: Level) -> list[Truth]:
    gap = means(case.weights, effects.clean - effects.counterfactual)
    truths = [measured_truth(name, means(case.weights, drops), gap) for name, drops in effects.drops.items()]
    task = tasks.get(case.task) if case.task != TASK else None
    circuit = task.circuit if task is not None else None
    if task is not None and circuit is not None and model in (circuit.model, task.model):
        members = circuit.nodes if level == "node" else circuit.parts
        if members:
            named = [component.name in members for component in case.components]
            truths.append(published_truth(named, len(case.weights)))
    return truths


def _groups(components: Sequence[Component]) -> dict[str, Bool[np.ndarray, " components"]]:
    heads = np.array([component.head is not None for component in components])
    shared = np.array([component.is_group for component in components])
    groups = {"all": np.ones_like(heads), "heads": heads, "groups": shared, "mlps": ~heads & ~shared}
    return {name: inside for name, inside in groups.items() if inside.any()}


def _effect_rows(case: Case, effects: Effects, attributions: dict[str, Attribution]) -> list[dict[str, Any]]:
    gap = float((effects.clean - effects.counterfactual).mean())
    tables = [
        Score(name, None, means(case.weights, drops), effects.cost[name]) for name, drops in effects.drops.items()
    ]
    tables += [Score(name, None, means(case.weights, some.values), some.cost) for name, some in attributions.items()]
    rows: list[dict[str, Any]] = []
    for table in tables:
        for index, component in enumerate(case.components):
            low, high = interval(table.replicas[:, index])
            rows.append(
                {
                    **{name: getattr(component, name) for name in ("node", "part", "layer", "head")},
                    **table.keys,
                    "component": component.name,
                    "gap": gap,
                    "value": float(table.replicas[0, index]),
                    "ci_low": low,
                    "ci_high": high,
                    "n_unpatched": len(case.pairs.refused),
                }
            )
    return rows
