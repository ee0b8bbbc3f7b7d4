"""Estimates of what components do that need no ablation: the baselines that a score has to beat.

With a the value of a component (see `points.py`), a' its value in the counterfactual, and g the gradient of the metric
m by a, all summed over positions:

    attribution_patching      (a - a') . g: the first-order effect of resampling (Nanda 2023; Syed et al. 2023,
                              arXiv 2310.10348)
    attribution_patching_ig   the same, with g averaged over k/5, k = 1..5, of the way of the embeddings from the
                              counterfactual to the prompt (Hanna et al. 2024, arXiv 2403.17806, EAP-IG inputs)
    hisp                      |a . g|, head importance (Michel et al. 2019, arXiv 1905.10650, section 4.1)
    direct_effect             a . f at the last position, where f is the gradient of m by what the component adds to the
                              residual stream with the final norm's statistics held fixed (`direct_effect.py`): for
                              the logit difference this is direct logit attribution, the comparison of the deck

The first two and the last are signed and estimate the drop that an ablation would cause. A backward pass runs to
activations only and costs about as much as a forward pass, so it is counted as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gbcd.evaluation.direct_effect import direct_effects, norm_tensors
from gbcd.evaluation.metrics import Metric
from gbcd.evaluation.pairs import Batch, Pairs
from gbcd.evaluation.points import Point, Tensors, recorded
from gbcd.evaluation.replay import Replay
from gbcd.models.load import LoadedModel

INTEGRATION_STEPS = 5


@dataclass(frozen=True)
class Attribution:
    """One baseline: values per prompt and component, and its cost in forward passes over all prompts."""

    values: Float[np.ndarray, "prompts components"]
    cost: float


def attribute(
    loaded: LoadedModel, pairs: Pairs, points: Sequence[Point], metric: Metric, *, with_direct: bool
) -> dict[str, Attribution]:
    """All baselines that need a pass through the model, by name.

    Args:
        loaded: the model, frozen.
        pairs: the prompts.
        points: where components lie.
        metric: what is explained.
        with_direct: include the direct effect, which exists only for points that write to the residual stream.
    """
    costs = {"attribution_patching": 3.0, "attribution_patching_ig": 1.0 + 2 * INTEGRATION_STEPS, "hisp": 2.0}
    if with_direct:
        costs["direct_effect"] = 1.0
    found = {name: np.zeros((len(pairs.encoded), len(points))) for name in costs}
    tensors = sorted({point.tensor for point in points})
    for batch in pairs.batches:
        for name, columns in _batch(loaded, batch, points, tensors, metric, with_direct).items():
            found[name][batch.rows] = torch.stack(columns, 1).double().cpu().numpy()
    return {name: Attribution(found[name], cost) for name, cost in costs.items()}


def _batch(
    loaded: LoadedModel,
    batch: Batch,
    points: Sequence[Point],
    tensors: Sequence[Tensors],
    metric: Metric,
    with_direct: bool,
) -> dict[str, list[Float[Tensor, " batch"]]]:
    ends = embedded(loaded, batch.counterfactual_ids), embedded(loaded, batch.ids)
    away = Replay(loaded, batch.counterfactual_ids, tensors).values
    here, gradients = passed_back(loaded, batch, sorted({*tensors, *norm_tensors(loaded)}), metric, ends[1])
    steps = [torch.lerp(*ends, step / INTEGRATION_STEPS) for step in range(1, INTEGRATION_STEPS)]
    path = [gradients, *(passed_back(loaded, batch, tensors, metric, step)[1] for step in steps)]
    means = {tensor: torch.stack([grads[tensor] for grads in path]).mean(0) for tensor in tensors}
    change = {tensor: here[tensor] - away[tensor] for tensor in tensors}
    found = {
        "attribution_patching": [_inner(point, change, gradients) for point in points],
        "attribution_patching_ig": [_inner(point, change, means) for point in points],
        "hisp": [_inner(point, here, gradients).abs() for point in points],
    }
    if with_direct:
        found["direct_effect"] = direct_effects(loaded, points, here, gradients)
    return found


def _inner(point: Point, left: dict[Tensors, Tensor], right: dict[Tensors, Tensor]) -> Float[Tensor, " batch"]:
    return (point.of(left[point.tensor]) * point.of(right[point.tensor])).sum((1, 2))


def embedded(loaded: LoadedModel, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """Token embeddings, positions apart: where a pass may start from."""
    table: Any = loaded.model.get_submodule(loaded.sites.embedding.token)
    return table(ids.to(loaded.device))


def passed_back(
    loaded: LoadedModel,
    batch: Batch,
    tensors: Sequence[Tensors],
    metric: Metric,
    embeddings: Float[Tensor, "batch pos d_model"],
) -> tuple[dict[Tensors, Tensor], dict[Tensors, Tensor]]:
    """Values and gradients of `tensors` in a pass that starts from `embeddings` (positions are added by the model)."""
    model: Any = loaded.model
    with torch.enable_grad(), recorded(model, tensors) as values:
        start = embeddings.detach().requires_grad_()
        logits = model(inputs_embeds=start, use_cache=False, logits_to_keep=1).logits[:, -1]
        gradients = torch.autograd.grad(metric(logits, batch.rows).sum(), [values[tensor] for tensor in tensors])
    return {tensor: value.detach() for tensor, value in values.items()}, dict(zip(tensors, gradients, strict=True))
