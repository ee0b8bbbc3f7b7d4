"""Quantiles of many columns in one pass and bounded memory, from histograms on a logarithmic scale.

Norms span many orders of magnitude, so bins grow in proportion: eight an octave, from 2^-48 to 2^16. A quantile is the
geometric middle of its bin and therefore within 4.5 per cent of the true one. Smaller values, zero among them, count as
zero; larger ones as the largest.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

BINS_PER_OCTAVE = 8
LOWEST_OCTAVE, HIGHEST_OCTAVE = -48, 16
N_BINS = (HIGHEST_OCTAVE - LOWEST_OCTAVE) * BINS_PER_OCTAVE


class LogHistogram:
    """Counts of the values of each column."""

    def __init__(self, n_columns: int) -> None:
        """Start empty."""
        self._offsets = np.arange(n_columns, dtype=np.int64)[:, None] * (N_BINS + 1)
        self._counts = np.zeros((n_columns, N_BINS + 1), dtype=np.int64)

    def add(self, values: Float[np.ndarray, "columns prompts"]) -> None:
        """Count `values`, which are finite and not negative."""
        with np.errstate(divide="ignore"):
            octaves = np.log2(values.astype(np.float32)) - LOWEST_OCTAVE
        bins = np.clip(np.floor(octaves * BINS_PER_OCTAVE) + 1, 0, N_BINS).astype(np.int64)
        counts = np.bincount((bins + self._offsets).ravel(), minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)

    def quantile(self, level: float) -> Float[np.ndarray, " columns"]:
        """The value below or at which the share `level` of a column lies; needs one value or more."""
        below = np.cumsum(self._counts, axis=1)
        bins = (below < level * below[:, -1:]).sum(axis=1)
        middles = np.exp2(LOWEST_OCTAVE + (bins - 0.5) / BINS_PER_OCTAVE)
        return np.where(bins == 0, 0.0, middles)
