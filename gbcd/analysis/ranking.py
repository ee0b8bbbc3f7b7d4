"""The score that components are ranked by, the ranks, and where a ranking is cut to give a circuit.

The choice of score and of the cut is made here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from gbcd.analysis.nodes import SIGNED, SUMMARISED, WRITING
from gbcd.component import Component
from gbcd.engine.tables import ATTRIBUTIONS
from gbcd.errors import BadInput

#: Scores that are taken by default, best first: the first that enough prompts have. See docs/findings.md.
DEFAULT_SCORES = ("attribution", "mean_attribution", "writing_norm", "grad_norm")

#: Scores by name, with the statistic whose mean over prompts they are. Of `attribution` the signed values are averaged
#: and the score is the size of the mean; of every other statistic sizes are averaged.
SCORES = {name: name + SIGNED if name == "attribution" else name for name in SUMMARISED}

#: All means that components can be ordered by, which the evaluation compares.
METHODS = SCORES | {name + SIGNED: name + SIGNED for name in ATTRIBUTIONS if name != "attribution"}

#: Share of the prompts that must have a statistic before its mean can be the score.
MIN_SHARE = 0.9

#: Share of the heads and MLPs that make up the circuit where one size is to speak for all.
CIRCUIT_SHARE = 0.2

#: The same of edges, where the study has them.
EDGE_SHARE = 0.05


def check_score(name: str | None, statistics: Collection[str] = ()) -> None:
    """Refuse a name that is no score, or one of a study that computes `statistics` alone; where none is given, all.

    Raises:
        BadInput: it is not one of `SCORES`, or of a statistic that is left out.
    """
    if name is None:
        return
    if name not in SCORES:
        raise BadInput(f"unknown score {name!r}; known: {', '.join(SCORES)}")
    needed = "centered_grad_norm" if name == WRITING else name
    if statistics and needed not in {*statistics, "grad_norm"}:
        raise BadInput(f"the score {name} needs the statistic {needed}, which the study leaves out")


def choose_score(counts: Mapping[str, int], wanted: str | None = None) -> str | None:
    """Name of the score of a task and wrong answer; None where no prompt has a finite gradient.

    Args:
        counts: prompts that have each statistic.
        wanted: a name of `SCORES` that goes before the default ones.
    """
    n = counts.get("grad_norm", 0)
    names = DEFAULT_SCORES if wanted is None else (wanted, *DEFAULT_SCORES)
    return next((name for name in names if n and counts.get(SCORES[name], 0) >= MIN_SHARE * n), None)


def rank_intervals(
    components: Sequence[Component], resamples: Float[np.ndarray, "resamples components"] | None
) -> Float[np.ndarray, "2 components"]:
    """Bounds of the 95 % interval of each rank, from scores on other draws of templates (`intervals.resampled_means`);
    NaN where there is no rank, or one template only.
    """
    found = np.full((2, len(components)), np.nan)
    rankable = _rankable(components)
    if resamples is not None and rankable.any():
        drawn = rankdata(-resamples[:, rankable], "ordinal", axis=1)
        found[:, rankable] = np.quantile(drawn, (0.025, 0.975), axis=0, method="inverted_cdf")
    return found


def ranks(
    components: Sequence[Component], scores: Float[np.ndarray, " components"]
) -> Float[np.ndarray, " components"]:
    """Ranks from 1, the largest score first, ties in the order of components; NaN where there is none.

    Only heads and MLPs (and their parts) compete, since only they can be in a circuit: norms and embeddings, and scores
    that are not defined, have no rank.
    """
    return rankdata(np.where(_rankable(components), -scores, np.nan), "ordinal", nan_policy="omit")


def _rankable(components: Sequence[Component]) -> Bool[np.ndarray, " components"]:
    return np.array([component.is_circuit_part for component in components], dtype=bool)
