"""Look up the mean inputs of a calibration for the tokens of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gbcd.engine.calibration import TaskMeans
from gbcd.models.taps import InputRows


class MeanInputs:
    """The means of one task, ready for batches.

    Beyond the positions that the sample reached, the last mean is returned; units that long have no centred norm, so
    what stands there is never used.
    """

    def __init__(self, task: TaskMeans, vocab: int, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the means to `device` and tabulate how often each token of `vocab` stands where."""
        task = task.to(device, dtype)
        self._means = task.means
        frequencies = task.token_frequencies(vocab)
        self._frequencies = frequencies.to(dtype)
        self._overlaps = torch.bmm(frequencies, frequencies.transpose(1, 2)).to(dtype)
        self._length = task.tokens.shape[1]

    def of(self, rows: InputRows, groups: Int[Tensor, " unit"]) -> Float[Tensor, "#unit pos d_in"]:
        """Means of the inputs `rows`, for units of the groups `groups`; one for all units where one will do."""
        table = self._means[rows.name]
        if len(table) == 1 and rows.positions.stride(0) == 0:
            return table[:, self._within(rows.positions[:1])[0]]
        return table[groups.unsqueeze(1), self._within(rows.positions)]

    def one_hot_gram(
        self, ids: Int[Tensor, "unit pos"], positions: Int[Tensor, "unit pos"], groups: Int[Tensor, " unit"]
    ) -> Float[Tensor, "unit pos pos"]:
        """Gram matrix of the one-hot tokens less their mean: `<e_t - f_t, e_s - f_s>`, f the frequencies."""
        group, at = groups.view(-1, 1, 1), self._within(positions)
        expected = self._frequencies[group, at.unsqueeze(2), ids.unsqueeze(1)]
        overlap = self._overlaps[group, at.unsqueeze(2), at.unsqueeze(1)]
        same = (ids.unsqueeze(2) == ids.unsqueeze(1)).to(overlap.dtype)
        return same - expected - expected.transpose(1, 2) + overlap

    def expected_logit_gradients(
        self,
        d_logits: Float[Tensor, "unit seq vocab"],
        positions: Int[Tensor, "unit pos"],
        groups: Int[Tensor, " unit"],
    ) -> Float[Tensor, "unit seq pos"]:
        """`<f_t, d_logits_a>`: the logit gradient at the token that usually stands at each position."""
        units, sequences, vocab = d_logits.shape
        table = self._frequencies.view(-1, vocab) @ d_logits.reshape(-1, vocab).T
        table = table.view(*self._frequencies.shape[:2], units, sequences)
        unit = torch.arange(units, device=groups.device).unsqueeze(1)
        return table[groups.unsqueeze(1), self._within(positions), unit].transpose(1, 2)

    def _within(self, positions: Int[Tensor, "unit pos"]) -> Int[Tensor, "unit pos"]:
        return positions.clamp(max=self._length - 1)
