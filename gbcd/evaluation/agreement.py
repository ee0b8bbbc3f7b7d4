"""How well scores find a circuit: pure functions of one score per component and the truth.

AUROC counts a tie between a component inside and one outside as half right, so a score that says nothing has 0.5.
Faithfulness and the two areas under it are those of MIB (Mueller et al. 2025, arXiv 2504.13151, section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

#: Shares of the components at which circuits are cut.
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def auroc(
    scores: Float[np.ndarray, "*resamples n"], members: Bool[np.ndarray, "*resamples n"]
) -> Float[np.ndarray, " *resamples"]:
    """Share of pairs of a member and a non-member that the scores put in order; NaN where there is no such pair."""
    # The rank of a member counts all scores below it; less the members among them, those are the pairs in order.
    below = rankdata(scores, axis=-1) - rankdata(np.where(members, scores, np.inf), axis=-1)
    n_inside, n_outside = members.sum(axis=-1), (~members).sum(axis=-1)
    return _ratio((below * members).sum(axis=-1), n_inside * n_outside)


def auprc(
    scores: Float[np.ndarray, "*resamples n"], members: Bool[np.ndarray, "*resamples n"]
) -> Float[np.ndarray, " *resamples"]:
    """Average precision: mean over members of the precision at their score; NaN if everything or nothing is one."""
    taken = rankdata(-scores, "max", axis=-1)
    found = rankdata(np.where(members, -scores, np.inf), "max", axis=-1)
    n_members = np.where(members.all(axis=-1), 0, members.sum(axis=-1))
    return _ratio((found / taken * members).sum(axis=-1), n_members)


def spearman(
    scores: Float[np.ndarray, "*resamples n"], effects: Float[np.ndarray, "*resamples n"]
) -> Float[np.ndarray, " *resamples"]:
    """Rank correlation of the scores with the sizes of the effects; NaN if either is constant."""
    one, two = (_centred_ranks(values) for values in (scores, np.abs(effects)))
    return _ratio((one * two).sum(axis=-1), np.sqrt(np.square(one).sum(axis=-1) * np.square(two).sum(axis=-1)))


def _centred_ranks(values: Float[np.ndarray, "*resamples n"]) -> Float[np.ndarray, "*resamples n"]:
    ranks = rankdata(values, axis=-1)
    return ranks - ranks.mean(axis=-1, keepdims=True)


def _ratio(above: Any, below: Any) -> Float[np.ndarray, " *resamples"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(below) > 0, np.asarray(above) / np.asarray(below, dtype=np.float64), np.nan)


def largest(scores: Float[np.ndarray, " n"], n: int) -> list[int]:
    """Indices of the `n` components with the largest scores; ties in order."""
    return np.argsort(-scores, kind="stable")[:n].tolist()


def faithfulness(
    metric: Float[np.ndarray, "resamples sizes"],
    nothing: Float[np.ndarray, "resamples 1"],
    everything: Float[np.ndarray, "resamples 1"],
) -> Float[np.ndarray, "resamples sizes"]:
    """Share of the model's metric that circuits recover: (m(C) - m(0)) / (m(N) - m(0))."""
    return share_of_gap(metric - nothing, everything - nothing)


def share_of_gap(
    difference: Float[np.ndarray, " *resamples"], gap: Float[np.ndarray, " *#resamples"]
) -> Float[np.ndarray, " *resamples"]:
    """`difference / gap`; NaN where there is no gap, as in a resample that drew only prompts without one."""
    gap = np.broadcast_to(gap, difference.shape)
    return np.divide(difference, gap, out=np.full(difference.shape, np.nan), where=gap != 0)


def cpr(faithful: Float[np.ndarray, " sizes"]) -> float:
    """Circuit performance ratio: area under faithfulness over `SIZES`; higher is better."""
    return float(np.trapezoid(faithful, SIZES))


def cmd(faithful: Float[np.ndarray, " sizes"]) -> float:
    """Circuit-model distance: area between faithfulness and 1 over `SIZES`; lower is better."""
    return float(np.trapezoid(np.abs(1 - faithful), SIZES))
