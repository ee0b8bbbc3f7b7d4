"""Patched runs of one batch: the prompts as they are, what is put in the place of values, and runs with it in place.

Several patches of every prompt are examples of one run, which starts at the first block that any of them touches: what
lies before it is as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.gram import widened
from gbcd.evaluation.metrics import Metric, metric_of
from gbcd.evaluation.pairs import Batch, Pairs
from gbcd.evaluation.places import Place
from gbcd.models.decoder import Options, SlicePatch, Start
from gbcd.models.load import LoadedModel

Ablation = Literal["resample", "mean", "zero"]

#: Examples of a patched run at most.
MAX_ROWS = 128

#: Mean over prompts at each position, by the name of a value.
Means = Mapping[str, Float[Tensor, "pos slice width"]]


class PatchedBatch:
    """One batch of prompts, to be run with patches.

    Attributes:
        clean: the metric on the prompts.
        other: the same, by the prompts' own answers, on their counterfactuals; where there are none, with every place
            at its mean.
    """

    def __init__(
        self, loaded: LoadedModel, batch: Batch, places: Sequence[Place], metric: Metric, means: Means | None = None
    ) -> None:
        """Run the prompts, and their counterfactuals unless `means` take their part (`are_pairs` is False)."""
        self._loaded, self._batch, self._metric, self._means = loaded, batch, metric, means or {}
        self._packed = batch.packed(loaded)
        names = {place.value for place in places}
        streams = {f"x{place.layer}" for place in places}
        run = loaded.decoder.run(self._packed, Options(record=names | streams))
        self._values = run.values
        self.clean = metric_of(metric, run, batch.rows)
        if all(prompt.reference_ids is None for prompt in batch.prompts):
            self._others: dict[str, Tensor] = {}
            self.other = self.patched([places], "mean")[:, 0]
        else:
            other = loaded.decoder.run(batch.packed_references(loaded), Options(record=names))
            self._others = other.values
            self.other = metric_of(metric, other, batch.rows)

    def patched(self, sets: Sequence[Collection[Place]], ablation: Ablation) -> Float[np.ndarray, "prompt set"]:
        """The metric with each of `sets` of places replaced."""
        at_once = max(1, MAX_ROWS // len(self._batch.rows))
        found = [self._run(sets[start : start + at_once], ablation) for start in range(0, len(sets), at_once)]
        return np.concatenate(found, axis=1)

    def _run(self, sets: Sequence[Collection[Place]], ablation: Ablation) -> Float[np.ndarray, "prompt set"]:
        touched = [place for some in sets for place in some]
        if not touched:
            return np.tile(self.clean[:, None], len(sets))
        n_prompts, n_sets = len(self._batch.rows), len(sets)
        patches = {name: self._patch(name, sets, ablation) for name in {place.value for place in touched}}
        first = min(place.layer for place in touched)
        start = Start(first, self._values[f"x{first}"].repeat_interleave(n_sets, 0))
        run = self._loaded.decoder.run(self._packed.repeated(n_sets), Options(patches=patches), start)
        rows = [row for row in self._batch.rows for _ in range(n_sets)]
        return metric_of(self._metric, run, rows).reshape(n_prompts, n_sets)

    def _patch(self, name: str, sets: Sequence[Collection[Place]], ablation: Ablation) -> SlicePatch:
        value = self._values[name]
        where = torch.zeros(len(sets), value.shape[2], dtype=torch.bool, device=value.device)
        for row, some in enumerate(sets):
            where[row, [place.slice for place in some if place.value == name]] = True
        other = self._replacement(name, ablation)
        if len(other) > 1:
            other = other.repeat_interleave(len(sets), 0)
        return SlicePatch(other, where.repeat(len(value), 1))

    def _replacement(self, name: str, ablation: Ablation) -> Float[Tensor, "#prompt #row slice width"]:
        value = self._values[name]
        if ablation == "zero":
            return value.new_zeros(1, 1, *value.shape[2:])
        if ablation == "resample":
            return self._others[name]
        if value.shape[1] == self._packed.ids.shape[1]:
            return self._means[name][None, : value.shape[1]]
        return self._means[name][self._packed.answers]


def position_means(loaded: LoadedModel, pairs: Pairs, places: Sequence[Place]) -> Means:
    """Mean of values over prompts at each position, over the prompts that are long enough to have it."""
    longest = max(len(prompt.ids) for prompt in pairs.encoded)
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(longest, 1, 1, device=loaded.device, dtype=torch.float64)
    for real, values in _recorded(loaded, pairs, {place.value for place in places}):
        counts[: real.shape[1]] += real.sum(0)[:, None, None]
        for name, value in values.items():
            total = sums.setdefault(name, value.new_zeros(longest, *value.shape[2:], dtype=torch.float64))
            total[: value.shape[1]] += (widened(value) * real[:, :, None, None]).sum(0)
    return {name: total / counts for name, total in sums.items()}


def _recorded(loaded: LoadedModel, pairs: Pairs, names: Collection[str]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Which tokens of each batch are no padding, and its values at every token."""
    for batch in pairs.batches:
        packed = batch.packed(loaded)
        lengths = torch.tensor([len(prompt.ids) for prompt in batch.prompts], device=loaded.device)
        real = torch.arange(packed.ids.shape[1], device=loaded.device) < lengths.unsqueeze(1)
        yield real, loaded.decoder.run(packed, Options(record=names, every_token=True)).values
