"""What figures would have been on other draws of templates: the cluster bootstrap.

Every table of resamples has the estimate itself in its first row and a resample in each further row. Prompts of one
template resemble each other, so whole templates are drawn, as many as there are; scores, effects and circuits see the
same draws, so differences between scores are paired. Where there is one template, prompts are drawn instead, and an
interval speaks of that template alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from gbcd.analysis.stored import TemplateSums

N_RESAMPLES = 200


class Draws:
    """Draws of the templates of one task."""

    def __init__(self, templates: Sequence[str], seed: int) -> None:
        """`templates` are those of the measured prompts, in their order."""
        rng = np.random.default_rng(seed)
        names = sorted(set(templates))
        n_prompts = len(templates)
        if len(names) > 1:
            drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), N_RESAMPLES)
            self._counts = {name: drawn[:, index].astype(float) for index, name in enumerate(names)}
            weights = np.stack([self._counts[template] for template in templates], axis=1)
        else:
            self._counts = dict[str, np.ndarray]()
            weights = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), N_RESAMPLES)
        #: Ones, then how often each prompt was drawn.
        self.weights: Float[np.ndarray, "resamples prompts"] = np.vstack([np.ones((1, n_prompts)), weights])
        self._quantile = float(stats.t.ppf(0.975, max(len(names) - 1 if len(names) > 1 else n_prompts - 1, 1)))

    def means(self, values: Float[np.ndarray, " prompts *rest"]) -> Float[np.ndarray, " resamples *rest"]:
        """Means over the measured prompts."""
        return np.tensordot(self.weights / self.weights.sum(axis=1, keepdims=True), values, axes=1)

    def means_of_templates(self, sums: TemplateSums) -> Float[np.ndarray, "resamples columns"]:
        """Means over all prompts of a study; templates without a measured prompt are drawn once each."""
        once = np.ones(N_RESAMPLES)
        drawn = np.stack([np.concatenate([[1.0], self._counts.get(name, once)]) for name in sums.templates], axis=1)
        n = drawn @ sums.sizes
        # a draw of templates that have no values keeps the estimate
        drawn[n == 0] = 1.0
        return (drawn @ sums.sums) / (drawn @ sums.sizes)[:, None]

    def interval(
        self, resamples: Float[np.ndarray, " resamples"], lowest: float = -np.inf, highest: float = np.inf
    ) -> tuple[float, float]:
        """Bounds of the 95 % interval, within what is possible; NaN where there is no value.

        They are the estimate and t standard deviations of the resamples, t with one degree of freedom less than there
        are templates, since these are few. Percentiles of the resamples will not do: a resample has the noise of the
        sample and then its own, noise spoils rank figures, so resamples lie too low.
        """
        drawn = resamples[1:][np.isfinite(resamples[1:])]
        if not len(drawn) or not np.isfinite(resamples[0]):
            return float("nan"), float("nan")
        half = self._quantile * drawn.std()
        return float(max(lowest, resamples[0] - half)), float(min(highest, resamples[0] + half))

    def bounded(
        self, name: str, resamples: Float[np.ndarray, " resamples"], lowest: float = -np.inf, highest: float = np.inf
    ) -> dict[str, float]:
        """Columns `name`, `ci_low` and `ci_high`."""
        low, high = self.interval(resamples, lowest, highest)
        return {name: float(resamples[0]), "ci_low": low, "ci_high": high}
