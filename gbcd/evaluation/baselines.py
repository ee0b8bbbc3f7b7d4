"""Scores to beat, in one table: what each is, what it costs, and whether its sign means anything.

    attribution_patching       first-order effect of resampling (Nanda 2023; Syed et al. 2023, arXiv 2310.10348)
    attribution_patching_ig    the same, integrated over the embeddings (Hanna et al. 2024, arXiv 2403.17806)
    relp                       the same, passed back by relevance rules (Jafari et al. 2025, arXiv 2508.21258)
    gim                        the same by the rules of Edin et al. 2025, arXiv 2505.17630
    hisp                       |a . g|, head importance (Michel et al. 2019, arXiv 1905.10650, section 4.1)
    direct_effect              through the residual stream alone; for the logit difference direct logit attribution
    weight_norm, layer_index, parameter_count, random    what the weights, or nothing, say

A score of your own is one more record (`baseline`). A backward pass costs about as much as a forward pass, and is
counted as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.errors import BadInput, own_code
from gbcd.evaluation.score_context import ScoreContext
from gbcd.models.rules import RulesName
from gbcd.names import register_name

INTEGRATION_STEPS = 5

#: Of each component, or of each prompt and component.
Values = Float[np.ndarray, "*prompts components"]

Definition = Callable[[ScoreContext], Values]


class Baseline(NamedTuple):
    """One score.

    Attributes:
        name: in tables and the report.
        passes: forward passes per prompt that it takes.
        signed: whether it estimates the drop that an ablation would cause, sign included; its size is what ranks.
        needs_counterfactual: whether prompts need a counterfactual or a partner.
        function: gives the values.
        edges: gives those of edges, where it has them.
    """

    name: str
    passes: float
    signed: bool
    needs_counterfactual: bool
    function: Definition
    edges: Callable[[ScoreContext], Float[Tensor, "prompt edge"] | None] | None = None

    def values(self, context: ScoreContext) -> Values:
        """The values, checked.

        Raises:
            BadInput: the code of a score of one's own fails, or gives values of another shape.
        """
        with own_code(f"score {self.name!r}", self.function):
            values = np.asarray(self.function(context), dtype=np.float64)
        n_prompts, n_components = len(context.prompts), len(context.components)
        if values.shape not in ((n_components,), (n_prompts, n_components)):
            raise BadInput(
                f"score {self.name!r} gives values of shape {values.shape}; wanted are {n_components}, one for each "
                f"component, or {n_prompts} x {n_components}, one for each prompt and component"
            )
        return values


_BASELINES: dict[str, Baseline] = {}


def every_baseline() -> Mapping[str, Baseline]:
    """All that are registered, by name."""
    return _BASELINES


def baseline(
    name: str, passes: float = 0.0, *, signed: bool = False, needs_counterfactual: bool = False
) -> Callable[[Definition], Definition]:
    """Register a score of one's own; it is held against measured effects like every other. Arguments as in `Baseline`.

    Raises:
        BadInput: there is one of that name, or it has characters that file names cannot have.
    """

    def register(definition: Definition) -> Definition:
        register_name("score", name)
        _add(Baseline(name, passes, signed, needs_counterfactual, definition))
        return definition

    return register


def _add(record: Baseline) -> None:
    if record.name in _BASELINES:
        raise BadInput(f"there is a baseline {record.name!r} already: choose another name")
    _BASELINES[record.name] = record


def _attribution(name: str, rules: RulesName, steps: int, passes: float) -> Baseline:
    def of_nodes(context: ScoreContext) -> Values:
        change = context.attributed(rules, steps).change
        assert change is not None
        return _numpy(change)

    return Baseline(name, passes, True, True, of_nodes, lambda context: context.attributed(rules, steps).edges)


_add(_attribution("attribution_patching", "plain", 1, 3.0))
_add(_attribution("attribution_patching_ig", "plain", INTEGRATION_STEPS, 1.0 + 2 * INTEGRATION_STEPS))
_add(_attribution("relp", "relp", 1, 3.0))
_add(_attribution("gim", "gim", 1, 3.0))


@baseline("hisp", 2.0)
def hisp(context: ScoreContext) -> Values:
    """Size of value times gradient."""
    return _numpy(context.attributed().value.abs())


@baseline("direct_effect", 1.0, signed=True)
def direct_effect(context: ScoreContext) -> Values:
    """Of nodes; parts that write elsewhere than to the residual stream have none."""
    if any(component.name != component.node for component in context.components):
        return np.zeros(len(context.components))
    return _numpy(context.direct_effects())


@baseline("weight_norm")
def weight_norm(context: ScoreContext) -> Values:
    """Frobenius norm of the weights."""
    decoder, squares = context.loaded.decoder, dict[str, float]()
    blocks = [*decoder.attentions, *(mlp for mlp in decoder.mlps if mlp is not None)]
    for linear in (linear for block in blocks for linear in (*block.maps, block.out)):
        slices = linear.weight.double().chunk(len(linear.components), dim=1 if linear.axis == "out" else 0)
        squares |= {name: float(part.square().sum()) for name, part in zip(linear.components, slices, strict=True)}
    for part in context.loaded.components:
        if part.is_circuit_part:
            squares[part.node] = squares.get(part.node, 0.0) + squares[part.name]
    return np.sqrt([squares[component.name] for component in context.components])


@baseline("layer_index")
def layer_index(context: ScoreContext) -> Values:
    """Later is higher."""
    return np.array([float(component.layer) for component in context.components])


@baseline("parameter_count")
def parameter_count(context: ScoreContext) -> Values:
    """How many weights there are."""
    return np.array([float(component.n_params) for component in context.components])


def _random_edges(context: ScoreContext) -> Float[Tensor, "prompt edge"] | None:
    edges = context.attributed().edges
    if edges is None:
        return None
    drawn = torch.tensor(context.rng.normal(size=edges.shape[1]))
    return drawn.expand(len(edges), -1)


def random(context: ScoreContext) -> Values:
    """What no score should be worse than."""
    return context.rng.random(len(context.components))


_add(Baseline("random", 0.0, False, False, random, _random_edges))


def _numpy(values: Tensor) -> Float[np.ndarray, "prompts components"]:
    return values.detach().double().cpu().numpy()
