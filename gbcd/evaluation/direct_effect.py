"""What a node adds to the metric through the residual stream alone, with the statistics of norms held fixed.

The direct effect is `a . f` at the last position: f is the gradient of the metric by the final residual stream as the
unembedding sees it, and a is what the node adds to that stream, after a norm of its own where the block has one
(Gemma). A group of heads writes to its heads and not to the stream: its direct effect is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gbcd.evaluation.points import Point, Tensors
from gbcd.models import gain_of, parameter
from gbcd.models.hooked_pass import epsilon
from gbcd.models.load import LoadedModel
from gbcd.models.sites import GainSite

Values = Mapping[Tensors, Tensor]


def norm_tensors(loaded: LoadedModel) -> list[Tensors]:
    """Tensors that `direct_effects` needs beside the points'."""
    final, after = _final_norm(loaded), _post_norms(loaded).values()
    return [Tensors(final.module, "output"), *(Tensors(norm.module, "input") for norm in (final, *after))]


def direct_effects(
    loaded: LoadedModel, points: Sequence[Point], values: Values, gradients: Values
) -> list[Float[Tensor, " batch"]]:
    """Direct effect of each of `points`, which are nodes."""
    final, post_norms = _final_norm(loaded), _post_norms(loaded)
    after = gradients[Tensors(final.module, "output")][:, -1]
    scaled = after * gain_of(loaded.model, final) / _deviation(loaded, final, values)
    direction = _without_mean(final, scaled)
    found: list[Tensor] = []
    for point in points:
        value = point.of(values[point.tensor])[:, -1]
        if ".g" in point.name:
            found.append(torch.zeros_like(direction[:, 0]))
            continue
        if point.tensor.side == "input":
            value = value @ _rows(loaded, point)
        norm = post_norms.get(f"{point.name.split('.')[0]}.post_norm")
        if norm is not None:
            centred = _without_mean(norm, value)
            value = centred * gain_of(loaded.model, norm) / _deviation(loaded, norm, values)
        found.append((value * direction).sum(-1))
    return found


def _final_norm(loaded: LoadedModel) -> GainSite:
    return next(gain for gain in loaded.sites.gains if gain.component == "final.norm")


def _post_norms(loaded: LoadedModel) -> dict[str, GainSite]:
    return {gain.component: gain for gain in loaded.sites.gains if gain.component.endswith(".post_norm")}


def _deviation(loaded: LoadedModel, norm: GainSite, values: Values) -> Float[Tensor, "batch 1"]:
    x = _without_mean(norm, values[Tensors(norm.module, "input")][:, -1])
    return (x.square().mean(-1, keepdim=True) + epsilon(loaded.model.get_submodule(norm.module))).sqrt()


def _without_mean(norm: GainSite, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
    return x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x


def _rows(loaded: LoadedModel, point: Point) -> Float[Tensor, "slice d_model"]:
    weight = parameter(loaded.model, point.tensor.module)
    is_linear = isinstance(loaded.model.get_submodule(point.tensor.module), nn.Linear)
    return point.of(weight if is_linear else weight.T).T
