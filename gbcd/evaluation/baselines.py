"""Scores to beat: those that need counterfactuals or a pass of their own, and what the weights alone say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gbcd.component import Component
from gbcd.errors import BadInput, own_code
from gbcd.evaluation.attribution import Attribution
from gbcd.evaluation.pairs import Pairs
from gbcd.evaluation.recovery import Score
from gbcd.evaluation.replicas import means
from gbcd.models.load import LoadedModel

#: Of each component, or of each prompt and component.
Values = Float[np.ndarray, "*prompts components"]


class Asked(NamedTuple):
    """What a baseline may read.

    Attributes:
        loaded: the model.
        pairs: prompts with their counterfactuals.
        components: parts or nodes (`gbcd.analysis.nodes.NodeMap`), in the order that the values are to have.
        rng: for what is drawn.
    """

    loaded: LoadedModel
    pairs: Pairs
    components: Sequence[Component]
    rng: np.random.Generator


Definition = Callable[[Asked], Values]

_BASELINES: dict[str, tuple[Definition, float]] = {}


def attribution_scores(
    attributions: Mapping[str, Attribution], weights: Float[np.ndarray, "replicas prompts"]
) -> list[Score]:
    """Sizes of the mean attributions, with replicas."""
    return [
        Score(name, None, np.abs(means(weights, attribution.values)), attribution.cost)
        for name, attribution in attributions.items()
    ]


def baseline(name: str, cost: float = 0.0) -> Callable[[Definition], Definition]:
    """Register a score of one's own; it is held against measured effects like every other.

    Args:
        name: how it is called in tables and in the report.
        cost: forward passes per prompt that it takes, a backward pass counted as one.

    Raises:
        ValueError: there is one of that name.
    """

    def register(definition: Definition) -> Definition:
        if name in _BASELINES:
            raise ValueError(f"there is a baseline {name!r} already")
        _BASELINES[name] = (definition, cost)
        return definition

    return register


def baseline_scores(asked: Asked, weights: Float[np.ndarray, "replicas prompts"]) -> list[Score]:
    """All that are registered, with replicas: means over prompts, or all alike where there is one value for all."""
    found: list[Score] = []
    for name, (definition, cost) in _BASELINES.items():
        values = _computed(name, definition, asked)
        replicas = np.tile(values, (len(weights), 1)) if values.ndim == 1 else means(weights, values)
        found.append(Score(name, None, replicas, cost))
    return found


def _computed(name: str, definition: Definition, asked: Asked) -> Values:
    with own_code(f"score {name!r}", definition):
        values = np.asarray(definition(asked), dtype=np.float64)
    n_prompts, n_components = len(asked.pairs.encoded), len(asked.components)
    if values.shape not in ((n_components,), (n_prompts, n_components)):
        raise BadInput(
            f"score {name!r} gives values of shape {values.shape}; wanted are {n_components}, one for each component, "
            f"or {n_prompts} x {n_components}, one for each prompt and component"
        )
    return values


@baseline("weight_norm")
def weight_norm(asked: Asked) -> Values:
    """Frobenius norm of the weights."""
    squares = _squared_weight_norms(asked.loaded)
    for part in asked.loaded.components:
        if part.is_circuit_part:
            squares[part.node] = squares.get(part.node, 0.0) + squares[part.name]
    return np.sqrt([squares[component.name] for component in asked.components])


@baseline("layer_index")
def layer_index(asked: Asked) -> Values:
    """Later is higher."""
    return np.array([float(component.layer) for component in asked.components])


@baseline("parameter_count")
def parameter_count(asked: Asked) -> Values:
    """How many weights there are."""
    return np.array([float(component.n_params) for component in asked.components])


@baseline("random")
def noise(asked: Asked) -> Values:
    """What no score should be worse than."""
    return asked.rng.random(len(asked.components))


def _squared_weight_norms(loaded: LoadedModel) -> dict[str, float]:
    """Of every part of every head and MLP."""
    decoder, found = loaded.decoder, dict[str, float]()
    blocks = [*decoder.attentions, *(mlp for mlp in decoder.mlps if mlp is not None)]
    for linear in (linear for block in blocks for linear in (*block.maps, block.out)):
        slices = linear.weight.double().chunk(len(linear.components), dim=1 if linear.axis == "out" else 0)
        found |= {name: float(part.square().sum()) for name, part in zip(linear.components, slices, strict=True)}
    return found
