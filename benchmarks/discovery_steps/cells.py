"""One task of one model: measured effects, and every score, baseline and circuit held against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gbcd.evaluation.attribution import attribute
from gbcd.evaluation.faithfulness import CircuitRunner, dissection, faithfulness_curve
from gbcd.evaluation.interventions import Ablation, measure_effects
from gbcd.evaluation.points import Point, points
from gbcd.evaluation.replicas import means, poisson_weights
from jaxtyping import Float

from discovery_steps.aggregation_curve import curve
from discovery_steps.elimination import elimination_order
from discovery_steps.gradient_scores import calibrations, definitions, gradient_scores, norms, part_values
from discovery_steps.groups import Found, held_against
from gbcd import tasks
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.analysis.shard_values import Key
from gbcd.component import Component
from gbcd.engine.calibration import Calibration, Centering
from gbcd.evaluation.agreement import SIZES, cmd, cpr
from gbcd.evaluation.baselines import attribution_scores, contrast_scores
from gbcd.evaluation.metrics import Metric, metric_for
from gbcd.evaluation.pairs import Pairs, pair_up
from gbcd.evaluation.recovery import Score, Truth, measured_truth
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.wrong_answers.meaning import load_embedder, with_farthest

#: The score and the wrong answer that `gbcd run` ranks by unless it is told otherwise.
DEFAULT_SCORE, DEFAULT_ANSWER = "template: writing norm", "inverse_logits"
RAW_SCORE = "raw: norm"
SAME_PROMPTS = "template: writing norm, prompts of the pairs"
RESAMPLE, ELIMINATION = "resample effect (the truth itself)", "elimination"

#: Scores whose circuits are run.
_COMPARED = {
    (DEFAULT_SCORE, DEFAULT_ANSWER),
    ("position: norm", DEFAULT_ANSWER),
    (RAW_SCORE, DEFAULT_ANSWER),
    (RAW_SCORE, "logit_difference"),
    ("contrast_norm", DEFAULT_ANSWER),
    *((name, "") for name in ("attribution_patching", "attribution_patching_ig", RESAMPLE, "mean effect", ELIMINATION)),
}

#: Prompts that elimination chooses circuits on, apart from those that they are measured on.
ELIMINATION_PAIRS = 24


class Settings(NamedTuple):
    """How much is measured: `prompts` a task for scores, `pairs` for effects, `pool` for the curve of aggregation."""

    prompts: int
    pairs: int
    pool: int
    seed: int
    embedding_model: str | None


class Cell(NamedTuple):
    """What one task of one model comes to.

    Attributes:
        found: figures of every score.
        curves: rows of the aggregation table.
        truth: measured effects, estimate and replicas.
        nodes: heads and MLPs, as in the columns of all tables.
        shares: the default score with replicas, for the contrast between tasks.
        per_prompt: the default and the raw norm of every prompt of the pool, by method.
    """

    model: str
    task: str
    found: list[Found]
    curves: list[dict[str, Any]]
    truth: Truth
    nodes: list[Component]
    shares: Float[np.ndarray, "replicas nodes"]
    per_prompt: dict[str, Float[np.ndarray, "prompts nodes"]]


class Case(NamedTuple):
    """The pairs of a task, and how they are drawn anew."""

    loaded: LoadedModel
    pairs: Pairs
    metric: Metric
    weights: Float[np.ndarray, "replicas prompts"]


def measure(name: str, task: str, settings: Settings) -> Cell:
    """Measure one task of the model `name`."""
    torch.set_num_threads(1)
    loaded = models.load(name, "cpu", "float32")
    capacity = tasks.get(task).capacity(loaded.tokenizer)
    drawn = tasks.draw(task, loaded.tokenizer, min(capacity, max(settings.pool, settings.prompts)), settings.seed)
    pool = encode(drawn, loaded.tokenizer, loaded.context)
    if settings.embedding_model:
        drawn = with_farthest(drawn[: settings.prompts], load_embedder(settings.embedding_model))
    encoded = encode(drawn[: settings.prompts], loaded.tokenizer, loaded.context)
    rng = np.random.default_rng(settings.seed)
    case = case_of(loaded, task, encoded[: settings.pairs], rng)
    truth, effects = effects_of(case, ("resample", "mean"))
    centred_by = calibrations(loaded, pool)
    nodes = NodeMap.of(loaded.components)
    chosen = [index for index, node in enumerate(nodes.nodes) if node.is_circuit_part]
    components = [nodes.nodes[index] for index in chosen]
    assert [node.name for node in components] == [place.name for place in places_of(loaded)]
    scores = [
        effects["resample"]._replace(method=RESAMPLE),
        effects["mean"],
        _eliminated(loaded, task, encoded[settings.pairs : settings.pairs + ELIMINATION_PAIRS], len(case.weights)),
        *_baselines(case, components),
        *_by_gradients(case, encoded, centred_by, chosen, rng, with_meaning=bool(settings.embedding_model)),
    ]
    label = Path(name).name
    found = [_figures(case, truth, score, label, task, settings.seed) for score in scores]
    per_prompt = _of_pool(loaded, task, pool, centred_by["template"], nodes, chosen)
    assert truth.effects is not None
    curves = [
        {"model": label, "task": task, "method": method, **row}
        for method, values in per_prompt.items()
        for row in curve(values, truth.effects[0], rng)
    ]
    default = next(one for one in scores if (one.method, one.wrong_answer) == (DEFAULT_SCORE, DEFAULT_ANSWER))
    return Cell(label, task, found, curves, truth, components, default.replicas, per_prompt)


def places_of(loaded: LoadedModel) -> list[Point]:
    """Heads and MLPs."""
    return points(loaded.sites, loaded.components, "node")


def case_of(loaded: LoadedModel, task: str, encoded: Sequence[EncodedPrompt], rng: np.random.Generator) -> Case:
    """Prompts paired up, the metric of their task, and weights for replicas."""
    pairs = pair_up(encoded, 64)
    metric = metric_for(tasks.get(task).metric, pairs.encoded, loaded.device)
    return Case(loaded, pairs, metric, poisson_weights(len(pairs.encoded), rng))


def effects_of(case: Case, ablations: Sequence[Ablation]) -> tuple[Truth, dict[Ablation, Score]]:
    """Truth by resampling, and the sizes of mean effects as scores."""
    effects = measure_effects(case.loaded, case.pairs, places_of(case.loaded), case.metric, ablations)
    gap = means(case.weights, effects.clean - effects.counterfactual)
    drops = {name: means(case.weights, values) for name, values in effects.drops.items()}
    scores = {name: Score(f"{name} effect", None, np.abs(drop), effects.cost[name]) for name, drop in drops.items()}
    return measured_truth("resample", drops["resample"], gap), scores


def _eliminated(loaded: LoadedModel, task: str, encoded: Sequence[EncodedPrompt], n_replicas: int) -> Score:
    case = case_of(loaded, task, encoded, np.random.default_rng(0))
    places = places_of(loaded)
    rounds = elimination_order(CircuitRunner(loaded, case.pairs, places, case.metric, case.weights[:1]))
    return Score(ELIMINATION, None, np.tile(rounds, (n_replicas, 1)), len(places) ** 2 / 2)


def _baselines(case: Case, components: Sequence[Component]) -> list[Score]:
    attributions = attribute(case.loaded, case.pairs, places_of(case.loaded), case.metric, with_direct=True)
    contrast = contrast_scores(case.loaded, case.pairs, components, [DEFAULT_ANSWER], case.weights)
    return [*attribution_scores(attributions, case.weights), *contrast]


def _by_gradients(
    case: Case,
    encoded: Sequence[EncodedPrompt],
    centred_by: dict[Centering, Calibration],
    chosen: Sequence[int],
    rng: np.random.Generator,
    *,
    with_meaning: bool,
) -> Iterator[Score]:
    weights = poisson_weights(len(encoded), rng)
    patched = {prompt.prompt.id for prompt in case.pairs.encoded}
    of_pairs = np.zeros_like(weights)
    of_pairs[:, [row for row, prompt in enumerate(encoded) if prompt.prompt.id in patched]] = case.weights
    for centering, calibration in centred_by.items():
        tables = norms(case.loaded, encoded, calibration, definitions(with_meaning=with_meaning))
        yield from gradient_scores(tables, case.loaded.components, chosen, weights, centering)
        if centering == "template":
            # what gradients say of those prompts that baselines see, drawn anew together with the effects
            for score in gradient_scores(tables, case.loaded.components, chosen, of_pairs, centering):
                if (score.method, score.wrong_answer) == (DEFAULT_SCORE, DEFAULT_ANSWER):
                    yield score._replace(method=SAME_PROMPTS)


def _figures(case: Case, truth: Truth, score: Score, model: str, task: str, seed: int) -> Found:
    found = held_against(truth, score, model, task)
    if (score.method, score.wrong_answer or "") not in _COMPARED:
        return found
    runner = CircuitRunner(case.loaded, case.pairs, places_of(case.loaded), case.metric, case.weights)
    faithful = faithfulness_curve(runner, score)
    figures = {
        "faithfulness": faithful[:, SIZES.index(CIRCUIT_SHARE)],
        "cpr": np.array([cpr(row) for row in faithful]),
        "cmd": np.array([cmd(row) for row in faithful]),
    }
    return found._replace(figures=found.figures | figures | dissection(runner, score, seed))


def _of_pool(
    loaded: LoadedModel,
    task: str,
    pool: Sequence[EncodedPrompt],
    calibration: Calibration,
    nodes: NodeMap,
    chosen: Sequence[int],
) -> dict[str, Float[np.ndarray, "prompts nodes"]]:
    tables = norms(loaded, pool, calibration, [DEFAULT_ANSWER])
    parts = part_values(tables, Key(task, DEFAULT_ANSWER), nodes)
    return {
        RAW_SCORE: nodes.norms(parts["grad_norm"][0])[chosen].T,
        DEFAULT_SCORE: parts["centered_grad_norm"][0][nodes.writers][chosen].T,
    }
