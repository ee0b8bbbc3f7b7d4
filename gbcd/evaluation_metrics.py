"""How well scores find a circuit: pure functions of one score per component and the truth.

AUROC is given twice. The trapezoid counts a tie between a component inside and one outside as half right; the
pessimistic sum of ACDC (Conmy et al. 2023, arXiv 2304.14997, appendix) counts it as wrong, so a score that says nothing
has 0.5 and 0.
Faithfulness and the two areas under it are those of MIB (Mueller et al. 2025, arXiv 2504.13151, section 3).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

#: Shares of the components at which circuits are cut.
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def auroc(scores: Float[np.ndarray, "n"], members: Bool[np.ndarray, "n"], *, pessimistic: bool = False) -> float:
    """Share of pairs of a member and a non-member that the scores put in order; NaN if there is no such pair."""
    inside, outside = scores[members], np.sort(scores[~members])
    if not len(inside) or not len(outside):
        return float("nan")
    below = np.searchsorted(outside, inside, "left")
    if pessimistic:
        return float(below.mean() / len(outside))
    return float((below + np.searchsorted(outside, inside, "right")).mean() / (2 * len(outside)))


def auprc(scores: Float[np.ndarray, "n"], members: Bool[np.ndarray, "n"]) -> float:
    """Average precision; NaN if everything or nothing is a member."""
    if members.all() or not members.any():
        return float("nan")
    return float(average_precision_score(members, scores))


def spearman(scores: Float[np.ndarray, "n"], effects: Float[np.ndarray, "n"]) -> float:
    """Rank correlation of the scores with the sizes of the effects; NaN if either is constant."""
    ranks = rankdata(scores), rankdata(np.abs(effects))
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def largest(scores: Float[np.ndarray, "n"], share: float) -> list[int]:
    """Indices of the `share` of components with the largest scores, rounded to whole components; ties in order."""
    return np.argsort(-scores, kind="stable")[: round(share * len(scores))].tolist()


def faithfulness(metric: Float[np.ndarray, "sizes"], nothing: float, everything: float) -> Float[np.ndarray, "sizes"]:
    """Share of the model's metric that circuits recover: (m(C) - m(0)) / (m(N) - m(0))."""
    return (metric - nothing) / (everything - nothing)


def cpr(faithful: Float[np.ndarray, "sizes"]) -> float:
    """Circuit performance ratio: area under faithfulness over `SIZES`; higher is better."""
    return float(np.trapezoid(faithful, SIZES))


def cmd(faithful: Float[np.ndarray, "sizes"]) -> float:
    """Circuit-model distance: area between faithfulness and 1 over `SIZES`; lower is better."""
    return float(np.trapezoid(np.abs(1 - faithful), SIZES))


def stability(scores: Float[np.ndarray, "replicas n"], share: float) -> float:
    """Mean Jaccard index over pairs of the circuits that replicas of the scores give."""
    circuits = [frozenset(largest(replica, share)) for replica in scores]
    return float(np.mean([len(one & two) / len(one | two) for one, two in combinations(circuits, 2)]))
