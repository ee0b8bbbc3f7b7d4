"""What components do, measured: replace a component's value and see how far the task's metric falls.

    resample    by its value in the counterfactual prompt (or the partner), position by position
    mean        by its mean over the task's prompts at the same position
    zero        by zero

An effect is the drop, metric as it is less metric with the component replaced: positive where the component helps,
negative where it works against the answer. The other direction keeps a circuit and replaces everything else; embeddings
stay, since every circuit of nodes has them. Prompts without counterfactuals (compiled programs) cannot be resampled;
there the mean takes its place.

Several patches of every prompt are examples of one run, which starts at the first block that any of them touches: what
lies before it is as it was. So the effects of all nodes cost about half as many forward passes as there are nodes; of
resampling less, since prompt and counterfactual share their first tokens (`gbcd.models.tails`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.engine import packed_for
from gbcd.engine.gram import widened
from gbcd.evaluation.metrics import Metric, metric_of
from gbcd.evaluation.places import Place
from gbcd.models.decoder import Start
from gbcd.models.forward import Options, Rows, SlicePatch
from gbcd.models.load import LoadedModel
from gbcd.models.tails import known_in, tail_of, tail_run
from gbcd.prompting.tokens import EncodedPrompt

Ablation = Literal["resample", "mean", "zero"]

#: Examples of a patched run at most.
MAX_ROWS = 128

#: Mean over prompts at each position, by the name of a value.
Means = Mapping[str, Float[Tensor, "pos slice width"]]


class PatchedBatch:
    """Prompts that are run with patches.

    Attributes:
        clean: the metric on the prompts.
        other: the same, by the prompts' own answers, on their counterfactuals; where there are none, with every place
            at its mean.
        passes: forward passes over each prompt so far, counted by blocks and tokens, padding included.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[EncodedPrompt],
        places: Sequence[Place],
        metric: Metric,
        means: Means | None = None,
    ) -> None:
        """Run the prompts and their counterfactuals; `means` are needed without these, or by the ablation `mean`."""
        self._loaded, self._metric, self._means = loaded, metric, means or {}
        self._rows = list(range(len(prompts)))
        self._packed = packed_for(loaded, [(prompt.ids,) for prompt in prompts])
        names = {place.value for place in places}
        streams = {f"x{place.layer}" for place in places}
        run = loaded.decoder.run(self._packed, Options(record={*names, *streams, *known_in(loaded.spec.n_layers)}))
        self._values, self._others = run.values, dict[str, Tensor]()
        self.clean, self.passes = metric_of(metric, run.logits, self._rows), 1.0
        references = [prompt.reference_ids for prompt in prompts]
        if None in references:
            self.other = self.patched([places], "mean")[:, 0]
        else:
            others = packed_for(loaded, [(ids or (),) for ids in references])
            other = loaded.decoder.run(others, Options(record=names))
            self._tail = tail_of(self._packed, others)
            self._others = {name: self._of_tail(value) for name, value in other.values.items()}
            self.other = metric_of(metric, other.logits, self._rows)
            self.passes += 1.0

    def drops(
        self, places: Sequence[Place], ablation: Ablation, on_progress: Callable[[int], None] = lambda n: None
    ) -> Float[np.ndarray, "prompt place"]:
        """The effect of each place by itself; `on_progress` is told of every few."""
        found = np.zeros((len(self._rows), len(places)))
        for layer in sorted({place.layer for place in places}):
            columns = [column for column, place in enumerate(places) if place.layer == layer]
            patched = self.patched([[places[column]] for column in columns], ablation)
            found[:, columns] = self.clean[:, None] - patched
            on_progress(len(columns) * len(self._rows))
        return found

    def patched(self, sets: Sequence[Collection[Place]], ablation: Ablation) -> Float[np.ndarray, "prompt set"]:
        """The metric with each of `sets` of places replaced."""
        at_once = max(1, MAX_ROWS // len(self._rows))
        found = [self._run(sets[start : start + at_once], ablation) for start in range(0, len(sets), at_once)]
        return np.concatenate(found, axis=1)

    def _run(self, sets: Sequence[Collection[Place]], ablation: Ablation) -> Float[np.ndarray, "prompt set"]:
        touched = [place for some in sets for place in some]
        if not touched:
            return np.repeat(self.clean[:, None], len(sets), axis=1)
        patches = {name: self._patch(name, sets, ablation) for name in {place.value for place in touched}}
        first = min(place.layer for place in touched)
        rows = [row for row in self._rows for _ in sets]
        logits = self._logits(first, Options(patches=patches), len(sets), ablation)
        return metric_of(self._metric, logits, rows).reshape(len(self._rows), len(sets))

    def _logits(
        self, first: int, options: Options, times: int, ablation: Ablation
    ) -> Float[Tensor, "example seq vocab"]:
        """Of a run from block `first` on, over the tail where prompts are resampled, with every prompt `times`
        times."""
        decoder, packed, x = self._loaded.decoder, self._packed.repeated(times), self._values[f"x{first}"]
        passes = times * (1 - first / decoder.spec.n_layers)
        if ablation != "resample":
            self.passes += passes
            return decoder.run(packed, options, Start(first, x.repeat_interleave(times, 0))).logits
        assert self._tail.at is not None
        self.passes += passes * self._tail.at.shape[1] / x.shape[1]
        tail = Rows(packed, self._tail.at.repeat_interleave(times, 0))
        start = Start(first, self._of_tail(x).repeat_interleave(times, 0))
        return tail_run(decoder, options, tail, self._values, start).logits

    def _of_tail(self, value: Float[Tensor, "prompt row *rest"]) -> Float[Tensor, "prompt tail_row *rest"]:
        """A value in the tail, of all tokens or, in the last block, of the answers alone, which are in it."""
        if value.shape[1] != self._packed.ids.shape[1]:
            return value
        return self._tail.of(value.flatten(2)).unflatten(2, value.shape[2:])

    def _patch(self, name: str, sets: Sequence[Collection[Place]], ablation: Ablation) -> SlicePatch:
        value = self._values[name]
        where = torch.zeros(len(sets), value.shape[2], dtype=torch.bool, device=value.device)
        for row, some in enumerate(sets):
            where[row, [place.slice for place in some if place.value == name]] = True
        other = self._replacement(name, ablation)
        other = other.repeat_interleave(len(sets), 0) if len(other) > 1 else other
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


def position_means(
    loaded: LoadedModel, prompts: Sequence[EncodedPrompt], places: Sequence[Place], batch_size: int
) -> Means:
    """Mean of values over prompts at each position, over the prompts that are long enough to have it."""
    longest = max(len(prompt.ids) for prompt in prompts)
    options = Options(record={place.value for place in places}, every_token=True)
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(longest, 1, 1, device=loaded.device, dtype=torch.float64)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        packed = packed_for(loaded, [(prompt.ids,) for prompt in batch])
        lengths = torch.tensor([len(prompt.ids) for prompt in batch], device=loaded.device)
        width = packed.ids.shape[1]
        real = torch.arange(width, device=loaded.device) < lengths.unsqueeze(1)
        counts[:width] += real.sum(0)[:, None, None]
        for name, value in loaded.decoder.run(packed, options).values.items():
            total = sums.setdefault(name, value.new_zeros(longest, *value.shape[2:], dtype=torch.float64))
            total[:width] += (widened(value) * real[:, :, None, None]).sum(0)
    return {name: total / counts for name, total in sums.items()}
