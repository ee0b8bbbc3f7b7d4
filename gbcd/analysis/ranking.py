"""The score that components are ranked by, the ranks, and where a ranking is cut to give a circuit.

The choice of score and of the cut is made here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from gbcd.component import Component

#: Statistics whose mean over prompts is the score, best first; the first one that was computed is taken. What a node
#: writes says more of its effect than what it reads: see docs/findings.md.
SCORES = ("writing_norm", "grad_norm")

#: Share of the heads and MLPs that make up the circuit where one size is to speak for all.
CIRCUIT_SHARE = 0.2


def score_statistic(computed: Collection[str]) -> str:
    """Name of the statistic whose mean ranks the components, given the names of those that were computed."""
    return next((name for name in SCORES if name in computed), SCORES[-1])


class RankInterval(NamedTuple):
    """Bounds of the 95 % interval of each rank; None where there is no rank or only one template."""

    low: list[int | None]
    high: list[int | None]


def rank_intervals(
    components: Sequence[Component], replicas: Float[np.ndarray, "replicas components"] | None
) -> RankInterval:
    """Intervals of ranks from scores on other draws of templates (`ClusteredMoments.resampled_means`)."""
    bounds: list[list[int | None]] = [[None] * len(components), [None] * len(components)]
    if replicas is not None:
        rankable = [index for index, component in enumerate(components) if component.is_circuit_part]
        drawn = rankdata(-replicas[:, rankable], "ordinal", axis=1)
        for bound, quantile in zip(bounds, (0.025, 0.975), strict=True):
            found = np.quantile(drawn, quantile, axis=0, method="inverted_cdf")
            for index, rank in zip(rankable, found.tolist(), strict=True):
                bound[index] = int(rank)
    return RankInterval(*bounds)


def ranks(components: Sequence[Component], scores: Float[np.ndarray, " components"]) -> list[int | None]:
    """Ranks from 1, the largest score first, ties in the order of components.

    Only heads and MLPs (and their parts) compete, since only they can be in a circuit: norms and embeddings, and scores
    that are not defined, have no rank.
    """
    rankable = [
        index for index, component in enumerate(components) if component.is_circuit_part and not np.isnan(scores[index])
    ]
    ordered = sorted(rankable, key=lambda index: -scores[index])
    found: list[int | None] = [None] * len(components)
    for rank, index in enumerate(ordered, start=1):
        found[index] = rank
    return found
