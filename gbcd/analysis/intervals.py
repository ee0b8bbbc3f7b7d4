"""Means, standard deviations and 95 % intervals from sums that can be added up shard by shard.

Prompts of one template resemble each other, so they are not independent draws, and an interval that takes them for such
is too narrow. Templates are therefore clusters. With `n_g` prompts of template `g` whose mean is `m_g`, the variance
of the overall mean `m` is estimated by the cluster-robust (sandwich) formula

    V = G / (G - 1) * sum_g (n_g (m_g - m))^2 / n^2

and the interval is `m +- t sqrt(V)` with the quantile of Student's t with `G - 1` degrees of freedom, since templates
are few (Cameron & Miller 2015, A Practitioner's Guide to Cluster-Robust Inference, sections II and VI). Where every
prompt is its own template this is the ordinary interval of a mean. With two templates t is 12.7, so the
interval is wide, and rightly so.

One template says nothing about others. The interval then speaks of prompts of that template alone, drawn independently:
`n_templates = 1` marks it. One prompt has neither spread nor interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

#: Clusters kept in memory. Further templates share them in turn: a template is still never split, so the interval
#: stays valid, and memory is bounded where every line of a prompt file is its own template.
MAX_CLUSTERS = 100

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean with its spread over prompts and its 95 % interval; NaN where it is not defined."""

    mean: Float[np.ndarray, " *columns"]
    std: Float[np.ndarray, " *columns"]
    ci_low: Float[np.ndarray, " *columns"]
    ci_high: Float[np.ndarray, " *columns"]


@dataclass
class ClusteredMoments:
    """Running mean and spread of many columns over prompts, with a sum per cluster of templates.

    `mean` and `m2` (sum of squared deviations) are updated by the formula of Chan, Golub & LeVeque (1983), which does
    not cancel; all sums are float64.
    """

    n: int = 0
    mean: Float[np.ndarray, " *columns"] = field(default_factory=lambda: np.zeros(()))
    m2: Float[np.ndarray, " *columns"] = field(default_factory=lambda: np.zeros(()))
    _clusters: dict[str, int] = field(default_factory=dict[str, int])
    _sizes: list[int] = field(default_factory=list[int])
    _sums: list[Float[np.ndarray, " *columns"]] = field(default_factory=list[np.ndarray])

    @property
    def n_templates(self) -> int:
        """Distinct templates seen."""
        return len(self._clusters)

    def add(self, values: Float[np.ndarray, "*columns prompts"], templates: list[str]) -> None:
        """Take in `values`, finite, one entry of `templates` per prompt."""
        count = values.shape[-1]
        if count == 0:
            return
        clusters = np.array([self._cluster(template) for template in templates])
        order = np.argsort(clusters, kind="stable")
        found, starts = np.unique(clusters[order], return_index=True)
        sums = np.add.reduceat(values[..., order], starts, axis=-1)
        self._add_to_clusters(found, np.diff([*starts, count]), sums)

        mean = sums.sum(axis=-1) / count
        shift = mean - self.mean
        deviations = values - mean[..., None]
        within = np.einsum("...n,...n->...", deviations, deviations)
        self.m2 = self.m2 + within + np.square(shift) * (self.n * count / (self.n + count))
        self.mean = self.mean + shift * (count / (self.n + count))
        self.n += count

    def estimate(self) -> Estimate:
        """What has been taken in so far; needs at least one prompt."""
        undefined = np.full_like(self.mean, np.nan)
        if self.n < 2:
            return Estimate(self.mean, undefined, undefined, undefined)
        std = np.sqrt(self.m2 / (self.n - 1))
        clusters = len(self._sums)
        if clusters == 1:
            error, freedom = std / np.sqrt(self.n), self.n - 1
        else:
            sizes = np.array(self._sizes, dtype=np.float64)
            scores = np.stack(self._sums, axis=-1) - self.mean[..., None] * sizes
            error = np.sqrt(clusters / (clusters - 1) * np.square(scores).sum(axis=-1)) / self.n
            freedom = clusters - 1
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
        return Estimate(self.mean, std, self.mean - half, self.mean + half)

    def resampled_means(self, n_replicas: int, seed: int) -> Float[np.ndarray, " replicas *columns"] | None:
        """Means over other draws of as many clusters (the cluster bootstrap); None if there is one cluster only."""
        clusters = len(self._sums)
        if clusters < 2:
            return None
        drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), n_replicas)
        sums = np.tensordot(drawn.astype(np.float64), np.stack(self._sums), axes=1)
        counts = drawn @ np.array(self._sizes)
        return sums / counts.reshape(-1, *[1] * (sums.ndim - 1))

    def _cluster(self, template: str) -> int:
        return self._clusters.setdefault(template, len(self._clusters)) % MAX_CLUSTERS

    def _add_to_clusters(
        self,
        clusters: Int[np.ndarray, " found"],
        sizes: Int[np.ndarray, " found"],
        sums: Float[np.ndarray, "*columns f"],
    ) -> None:
        for index, cluster in enumerate(clusters.tolist()):
            while len(self._sums) <= cluster:
                self._sums.append(np.zeros(sums.shape[:-1]))
                self._sizes.append(0)
            self._sums[cluster] += sums[..., index]
            self._sizes[cluster] += int(sizes[index])
