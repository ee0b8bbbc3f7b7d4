"""What components do, measured: replace a component's value and see how far the task's metric falls.

    resample    by its value in the counterfactual prompt, position by position
    mean        by its mean over the task's prompts at the same position
    zero        by zero

Prompts without counterfactuals (compiled programs) cannot be resampled; there the mean takes its place throughout.

An effect is the drop, metric as it is less metric with the component replaced: positive where the component helps,
negative where it works against the answer. One component at a time, all prompts of a length at once, from its block on.

The other direction keeps a circuit and replaces everything else (`circuit_metrics`). All nodes outside take
their counterfactual values, or their means; embeddings stay, since every circuit has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.gram import widened
from gbcd.evaluation.metrics import Metric
from gbcd.evaluation.pairs import Batch, Pairs
from gbcd.evaluation.points import Point, Tensors
from gbcd.evaluation.replay import Replay
from gbcd.evaluation.steps import Watch, unwatched
from gbcd.models.load import LoadedModel

Ablation = Literal["resample", "mean", "zero"]
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
    points: Sequence[Point],
    metric: Metric,
    ablations: Sequence[Ablation] | None = None,
    watch: Watch = unwatched,
) -> Effects:
    """Ablate every point by itself, on every pair; by default in every way that the prompts allow."""
    if ablations is None:
        ablations = ABLATIONS if pairs.are_pairs else WITHOUT_COUNTERFACTUAL
    n_prompts = len(pairs.encoded)
    drops: dict[Ablation, np.ndarray] = {ablation: np.zeros((n_prompts, len(points))) for ablation in ablations}
    clean, counterfactual = np.zeros(n_prompts), np.zeros(n_prompts)
    means = _position_means(loaded, pairs, points) if "mean" in ablations or not pairs.are_pairs else {}
    reruns = done = 0
    for batch in pairs.batches:
        kept, other = _both_passes(loaded, batch, points, means)
        before = kept.n_layers_run
        clean[batch.rows] = _numpy(metric(kept.logits, batch.rows))
        counterfactual[batch.rows] = _numpy(metric(other.logits, batch.rows))
        for column, point in enumerate(points):
            for ablation in ablations:
                value = _replacement(ablation, point, other.values, means)
                drop = clean[batch.rows] - _numpy(metric(kept.rerun({point: value}), batch.rows))
                drops[ablation][batch.rows, column] = drop
            done += len(batch.rows)
            watch("effects of ablation", done, n_prompts * len(points))
        reruns += (kept.n_layers_run - before) * batch.ids.numel()
    # All ablations rerun the same blocks. Beside that each needs a pass over the prompts, and all but zero another:
    # over the counterfactuals, or for the means.
    each = reruns / len(ablations) / pairs.n_tokens / loaded.sites.n_layers
    cost: dict[Ablation, float] = {ablation: each + (1 if ablation == "zero" else 2) for ablation in ablations}
    return Effects(drops, clean, counterfactual, cost)


def circuit_metrics(
    loaded: LoadedModel,
    pairs: Pairs,
    points: Sequence[Point],
    circuits: Sequence[Collection[str]],
    metric: Metric,
    watch: Watch = unwatched,
) -> Float[np.ndarray, "circuits prompts"]:
    """The metric with all `points` outside a circuit (names of components) resampled, for each of `circuits`."""
    found = np.zeros((len(circuits), len(pairs.encoded)))
    means = {} if pairs.are_pairs else _position_means(loaded, pairs, points)
    done = 0
    for batch in pairs.batches:
        kept, other = _both_passes(loaded, batch, points, means)
        for row, circuit in enumerate(circuits):
            outside = {point: point.of(other.values[point.tensor]) for point in points if point.name not in circuit}
            found[row, batch.rows] = _numpy(metric(kept.rerun(outside), batch.rows))
            done += len(batch.rows)
            watch("faithfulness of circuits", done, found.size)
    return found


class _Away(NamedTuple):
    """What a prompt is compared with: logits, and the values of points."""

    logits: Tensor
    values: Mapping[Tensors, Tensor]


class _Passes(NamedTuple):
    kept: Replay
    away: _Away


def _both_passes(
    loaded: LoadedModel, batch: Batch, points: Sequence[Point], means: Mapping[Tensors, Tensor]
) -> _Passes:
    """The prompts of a batch, and their counterfactuals or, where there are none, the prompts with all `means`."""
    tensors = {point.tensor for point in points}
    kept = Replay(loaded, batch.ids)
    if batch.counterfactual_ids.shape[1]:
        other = Replay(loaded, batch.counterfactual_ids, tensors)
        return _Passes(kept, _Away(other.logits, other.values))
    n_rows, length = batch.ids.shape
    values = {tensor: means[tensor][:length].expand(n_rows, -1, -1) for tensor in tensors}
    return _Passes(kept, _Away(kept.rerun({point: point.of(values[point.tensor]) for point in points}), values))


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


def _numpy(values: Tensor) -> Float[np.ndarray, " batch"]:
    return values.double().cpu().numpy()
