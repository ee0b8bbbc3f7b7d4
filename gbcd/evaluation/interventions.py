"""What components do, measured: replace a component's value and see how far the task's metric falls.

    resample    by its value in the counterfactual prompt (or the partner), position by position
    mean        by its mean over the task's prompts at the same position
    zero        by zero

Prompts without counterfactuals (compiled programs) cannot be resampled; there the mean takes its place throughout.

An effect is the drop, metric as it is less metric with the component replaced: positive where the component helps,
negative where it works against the answer.

The other direction keeps a circuit and replaces everything else (`circuit_metrics`). All nodes outside take their
counterfactual values, or their means; embeddings stay, since every circuit has them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gbcd.evaluation.metrics import Metric
from gbcd.evaluation.pairs import Pairs
from gbcd.evaluation.patching import Ablation, PatchedBatch, position_means
from gbcd.evaluation.places import Place
from gbcd.evaluation.steps import Watch, unwatched
from gbcd.models.load import LoadedModel

ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
WITHOUT_COUNTERFACTUAL: tuple[Ablation, ...] = ("mean", "zero")


class Effects(NamedTuple):
    """Measured effects.

    Attributes:
        drops: for each ablation, the drop in the metric per prompt and component.
        clean: the metric on the prompts.
        counterfactual: the same, by the prompts' own answers, on their counterfactuals; where there are none, with
            every component at its mean.
        cost: for each ablation, forward passes over all blocks and prompts that it alone would take.
    """

    drops: dict[Ablation, Float[np.ndarray, "prompts components"]]
    clean: Float[np.ndarray, " prompts"]
    counterfactual: Float[np.ndarray, " prompts"]
    cost: dict[Ablation, float]


def measure_effects(
    loaded: LoadedModel,
    pairs: Pairs,
    places: Sequence[Place],
    metric: Metric,
    ablations: Sequence[Ablation] | None = None,
    watch: Watch = unwatched,
) -> Effects:
    """Ablate every place by itself, on every pair; by default in every way that the prompts allow."""
    if ablations is None:
        ablations = ABLATIONS if pairs.are_pairs else WITHOUT_COUNTERFACTUAL
    n_prompts, n_layers = len(pairs.encoded), loaded.spec.n_layers
    drops: dict[Ablation, np.ndarray] = {ablation: np.zeros((n_prompts, len(places))) for ablation in ablations}
    clean, counterfactual = np.zeros(n_prompts), np.zeros(n_prompts)
    means = position_means(loaded, pairs, places) if "mean" in ablations or not pairs.are_pairs else None
    done = 0
    for batch in pairs.batches:
        runs = PatchedBatch(loaded, batch, places, metric, means)
        clean[batch.rows], counterfactual[batch.rows] = runs.clean, runs.other
        for layer in sorted({place.layer for place in places}):
            columns = [column for column, place in enumerate(places) if place.layer == layer]
            for ablation in ablations:
                found = runs.patched([[places[column]] for column in columns], ablation)
                drops[ablation][np.ix_(batch.rows, columns)] = runs.clean[:, None] - found
            done += len(batch.rows) * len(columns)
            watch("effects of ablation", done, n_prompts * len(places))
    # Beside the blocks that it changes, each ablation needs a pass over the prompts, and all but zero another: over the
    # counterfactuals, or for the means.
    patched = sum(n_layers - place.layer for place in places) / n_layers
    cost: dict[Ablation, float] = {ablation: patched + (1 if ablation == "zero" else 2) for ablation in ablations}
    return Effects(drops, clean, counterfactual, cost)


def circuit_metrics(
    loaded: LoadedModel,
    pairs: Pairs,
    places: Sequence[Place],
    circuits: Sequence[Collection[str]],
    metric: Metric,
    watch: Watch = unwatched,
) -> Float[np.ndarray, "circuits prompts"]:
    """The metric with all `places` outside a circuit (names of components) resampled, for each of `circuits`."""
    found = np.zeros((len(circuits), len(pairs.encoded)))
    means = None if pairs.are_pairs else position_means(loaded, pairs, places)
    outside = [[place for place in places if place.name not in circuit] for circuit in circuits]
    done = 0
    for batch in pairs.batches:
        runs = PatchedBatch(loaded, batch, places, metric, means)
        found[:, batch.rows] = runs.patched(outside, "resample" if pairs.are_pairs else "mean").T
        done += len(batch.rows)
        watch("faithfulness of circuits", done, len(pairs.encoded))
    return found
