"""Effects, circuits and baselines of a few prompts, without a results folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from gbcd.evaluation.baselines import every_baseline
from gbcd.evaluation.metrics import Metric
from gbcd.evaluation.patching import Ablation, PatchedBatch, position_means
from gbcd.evaluation.places import Level, Place, places_of
from gbcd.evaluation.score_context import ScoreContext
from gbcd.evaluation.work import circuit_components
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt


class Effects(NamedTuple):
    """Drops by ablation, and the metric on the prompts and on what they are compared with."""

    drops: dict[str, np.ndarray]
    clean: np.ndarray
    counterfactual: np.ndarray


def effects_of(
    loaded: LoadedModel,
    prompts: Sequence[EncodedPrompt],
    places: Sequence[Place],
    metric: Metric,
    ablations: Sequence[Ablation] = ("resample", "mean", "zero"),
) -> Effects:
    """Every place ablated by itself."""
    batch = PatchedBatch(loaded, prompts, places, metric, position_means(loaded, prompts, places, 2))
    return Effects({name: batch.drops(places, name) for name in ablations}, batch.clean, batch.other)


def circuits_of(
    loaded: LoadedModel,
    prompts: Sequence[EncodedPrompt],
    places: Sequence[Place],
    circuits: Sequence[Collection[str]],
    metric: Metric,
    ablation: Ablation = "resample",
) -> np.ndarray:
    """The metric of circuits of nodes, by prompt, with everything outside replaced."""
    batch = PatchedBatch(loaded, prompts, places, metric, position_means(loaded, prompts, places, 2))
    outside = [[place for place in places if place.name not in circuit] for circuit in circuits]
    return batch.patched(outside, ablation).T


def context_of(
    loaded: LoadedModel,
    prompts: Sequence[EncodedPrompt],
    metric: Metric,
    level: Level = "node",
    with_edges: bool = False,
) -> ScoreContext:
    """What baselines read."""
    components = circuit_components(loaded, level)
    return ScoreContext(loaded, prompts, components, places_of(loaded.components, level), metric, 0, with_edges)


def baselines_of(context: ScoreContext, *names: str) -> dict[str, np.ndarray]:
    """Values of some baselines, by place."""
    return {name: every_baseline()[name].values(context) for name in names}
