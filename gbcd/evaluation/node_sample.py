"""Which nodes are ablated where not all are: the best by a score, and of the others a sample that stands for them.

The others are cut, in the order of the score, into runs of equal length, and of each run one node is drawn. It counts
as many times as its run is long, so figures over all nodes are those of a stratified sample, without bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def sampled(names: Sequence[str], scores: Float[np.ndarray, " nodes"], top: int | None, seed: int) -> dict[str, int]:
    """Nodes to be measured, in the order of `names`, and for how many each stands.

    Args:
        names: of all nodes.
        scores: what they are ordered by.
        top: how many of the best; the sample of the others is as large at most. None measures all.
        seed: fixes the draw.
    """
    if top is None or top >= len(names):
        return dict.fromkeys(names, 1)
    order = np.argsort(-scores, kind="stable")
    weights = dict.fromkeys(order[:top].tolist(), 1)
    rng = np.random.default_rng(seed)
    for run in np.array_split(order[top:], min(top, len(names) - top)):
        weights[int(rng.choice(run))] = len(run)
    return {name: weights[index] for index, name in enumerate(names) if index in weights}
