"""Scores to beat: those that need counterfactuals or a pass of their own, and what the weights alone say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from gbcd.architectures import parameter
from gbcd.architectures.models import LoadedModel
from gbcd.component import Component
from gbcd.evaluation.attribution import Attribution
from gbcd.evaluation.contrast import COST, contrast_norms
from gbcd.evaluation.pairs import Pairs
from gbcd.evaluation.recovery import Score
from gbcd.evaluation.replicas import means


def attribution_scores(
    attributions: Mapping[str, Attribution], weights: Float[np.ndarray, "replicas prompts"]
) -> list[Score]:
    """Sizes of the mean attributions, with replicas."""
    return [
        Score(name, None, np.abs(means(weights, attribution.values)), attribution.cost)
        for name, attribution in attributions.items()
    ]


def contrast_scores(
    loaded: LoadedModel,
    pairs: Pairs,
    components: Sequence[Component],
    wrong_answers: Sequence[str],
    weights: Float[np.ndarray, "replicas prompts"],
) -> list[Score]:
    """Mean norms of the difference of the gradients of prompt and counterfactual, with replicas."""
    found = contrast_norms(loaded, pairs, components, wrong_answers)
    return [Score("contrast_norm", name, means(weights, values), COST) for name, values in found.items()]


def static_scores(loaded: LoadedModel, components: Sequence[Component], n_replicas: int, seed: int) -> list[Score]:
    """Frobenius norm of the weights, layer, number of parameters, and noise: the same whatever the prompts.

    Args:
        loaded: the model.
        components: parts or nodes (`gbcd.reduction.nodes.NodeMap`), in the order that the scores are to have.
        n_replicas: rows of the scores, all alike.
        seed: of the noise.
    """
    squares = _squared_weight_norms(loaded)
    for part in loaded.components:
        if part.is_circuit_part:
            squares[part.node] = squares.get(part.node, 0.0) + squares[part.name]
    values = {
        "weight_norm": [squares[part.name] ** 0.5 for part in components],
        "layer_index": [float(part.layer) for part in components],
        "parameter_count": [float(part.n_params) for part in components],
        "random": np.random.default_rng(seed).random(len(components)).tolist(),
    }
    return [Score(name, None, np.tile(np.array(row), (n_replicas, 1)), 0.0) for name, row in values.items()]


def _squared_weight_norms(loaded: LoadedModel) -> dict[str, float]:
    """Of every part of every head and MLP."""
    found: dict[str, float] = {}
    for site in loaded.sites.linear:
        weight = parameter(loaded.model, site.module).detach().double()
        rows_are_outputs = isinstance(loaded.model.get_submodule(site.module), torch.nn.Linear)
        slices = weight.chunk(len(site.components), dim=0 if rows_are_outputs == (site.axis == "out") else 1)
        found |= {name: float(part.square().sum()) for name, part in zip(site.components, slices, strict=True)}
    return found
