"""What components do, measured: replace a component's value and see how far the task's metric falls.

    resample    by its value in the counterfactual prompt, position by position
    mean        by its mean over the task's prompts at the same position
    zero        by zero

An effect is the drop, metric as it is less metric with the component replaced: positive where the component helps,
negative where it works against the answer. One component at a time, all prompts of a length at once, from its block on.

The other direction keeps a circuit and replaces everything else (`circuit_metrics`). All nodes outside take
their counterfactual values; embeddings stay, since every circuit has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.architectures.models import LoadedModel
from gbcd.evaluation.metrics import Metric
from gbcd.evaluation.pairs import Batch, Pairs
from gbcd.evaluation.points import Point, Tensors
from gbcd.evaluation.replay import Replay
from gbcd.gradients.gram import widened

Ablation = Literal["resample", "mean", "zero"]
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")


class Effects(NamedTuple):
    """Measured effects.

    Attributes:
        drops: for each ablation, the drop in the metric per prompt and component.
        clean: the metric on the prompts.
        counterfactual: the same, by the prompts' own answers, on their counterfactuals.
        cost: for each ablation, forward passes over all blocks and prompts that it alone would take.
    """

    drops: dict[Ablation, Float[np.ndarray, "prompts components"]]
    clean: Float[np.ndarray, "prompts"]
    counterfactual: Float[np.ndarray, "prompts"]
    cost: dict[Ablation, float]


def measure_effects(
    loaded: LoadedModel,
    pairs: Pairs,
    points: Sequence[Point],
    metric: Metric,
    ablations: Sequence[Ablation] = ABLATIONS,
) -> Effects:
    """Ablate every point by itself, on every pair."""
    n_prompts = len(pairs.encoded)
    drops: dict[Ablation, np.ndarray] = {ablation: np.zeros((n_prompts, len(points))) for ablation in ablations}
    clean, counterfactual = np.zeros(n_prompts), np.zeros(n_prompts)
    means = _position_means(loaded, pairs, points) if "mean" in ablations else {}
    reruns = 0
    for batch in pairs.batches:
        kept, other = both_passes(loaded, batch, points)
        clean[batch.rows] = _numpy(metric(kept.logits, batch.rows))
        counterfactual[batch.rows] = _numpy(metric(other.logits, batch.rows))
        for column, point in enumerate(points):
            for ablation in ablations:
                value = _replacement(ablation, point, other.values, means)
                drop = clean[batch.rows] - _numpy(metric(kept.rerun({point: value}), batch.rows))
                drops[ablation][batch.rows, column] = drop
        reruns += (kept.n_layers_run - loaded.sites.n_layers) * batch.ids.numel()
    # All ablations rerun the same blocks. Beside that each needs a pass over the prompts, and all but zero another:
    # over the counterfactuals, or for the means.
    each = reruns / len(ablations) / pairs.n_tokens / loaded.sites.n_layers
    cost: dict[Ablation, float] = {ablation: each + (1 if ablation == "zero" else 2) for ablation in ablations}
    return Effects(drops, clean, counterfactual, cost)


def circuit_metrics(
    loaded: LoadedModel, pairs: Pairs, points: Sequence[Point], circuits: Sequence[Collection[str]], metric: Metric
) -> Float[np.ndarray, "circuits prompts"]:
    """The metric with all `points` outside a circuit (names of components) resampled, for each of `circuits`."""
    found = np.zeros((len(circuits), len(pairs.encoded)))
    for batch in pairs.batches:
        kept, other = both_passes(loaded, batch, points)
        for row, circuit in enumerate(circuits):
            outside = {point: point.of(other.values[point.tensor]) for point in points if point.name not in circuit}
            found[row, batch.rows] = _numpy(metric(kept.rerun(outside), batch.rows))
    return found


def both_passes(loaded: LoadedModel, batch: Batch, points: Sequence[Point]) -> tuple[Replay, Replay]:
    """The prompts of a batch, and their counterfactuals with the values of `points` recorded."""
    tensors = {point.tensor for point in points}
    return Replay(loaded, batch.ids), Replay(loaded, batch.counterfactual_ids, tensors)


def _replacement(
    ablation: Ablation, point: Point, counterfactual: Mapping[Tensors, Tensor], means: Mapping[Tensors, Tensor]
) -> Float[Tensor, "batch pos slice"]:
    whole = counterfactual[point.tensor]
    if ablation == "resample":
        return point.of(whole)
    if ablation == "mean":
        return point.of(means[point.tensor][: whole.shape[1]].expand_as(whole))
    return torch.zeros_like(point.of(whole))


def _position_means(loaded: LoadedModel, pairs: Pairs, points: Sequence[Point]) -> dict[Tensors, Tensor]:
    """Mean over prompts at each position, over the prompts that are long enough to have it."""
    longest = max(batch.ids.shape[1] for batch in pairs.batches)
    sums: dict[Tensors, Tensor] = {}
    counts = torch.zeros(longest, 1, device=loaded.device)
    for ids, values in _recordings(loaded, pairs, {point.tensor for point in points}):
        counts[: ids.shape[1]] += ids.shape[0]
        for tensor, value in values.items():
            value = widened(value)
            total = sums.setdefault(tensor, value.new_zeros(longest, value.shape[2]))
            total[: value.shape[1]] += value.sum(0)
    return {tensor: (total / counts).to(loaded.dtype) for tensor, total in sums.items()}


def _recordings(
    loaded: LoadedModel, pairs: Pairs, tensors: Collection[Tensors]
) -> Iterator[tuple[Tensor, dict[Tensors, Tensor]]]:
    for batch in pairs.batches:
        yield batch.ids, Replay(loaded, batch.ids, tensors).values


def _numpy(values: Tensor) -> Float[np.ndarray, "batch"]:
    return values.double().cpu().numpy()
