"""How well each score recovers the truth, as a table: one row per score, truth, group of components and figure.

Truth is measured (a component is in the circuit if its effect is at least a tenth of the gap between prompt and
counterfactual, in either direction) or published. Every figure is computed on the estimate and on each resample, in
which scores and effects are drawn anew; the spread of the resamples is its interval. So is the difference of a figure
to that of the score that ranks the study's components: one score is better than another only where the interval of
their difference leaves zero.

AUROC counts a tie between a component inside and one outside as half right, so a score that says nothing has 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from gbcd.evaluation.resampling import Draws

#: Effects below this share of the gap between prompt and counterfactual are outside the measured circuit.
MEMBER_SHARE = 0.1

#: Ends the name of a figure that is the difference to the score that ranks components.
DIFFERENCE = "_difference"


class Method(NamedTuple):
    """Which score it is: columns that name it in every table.

    Attributes:
        method: what it is.
        wrong_answer: the definition that its gradients are of; None for a baseline.
        cost: forward passes per prompt that it takes, a backward pass counted as one.
    """

    method: str
    wrong_answer: str | None
    cost: float


class Score(NamedTuple):
    """One score of all components: of its sizes the estimate, then resamples."""

    of: Method
    resamples: Float[np.ndarray, "resamples components"]


def sample_of_effects(n_prompts: object, n_pairs: object) -> str | None:
    """What figures cannot tell apart where effects are means over fewer prompts than scores; else None."""
    if not isinstance(n_prompts, int) or not isinstance(n_pairs, int) or n_prompts <= n_pairs:
        return None
    return (
        f"Scores of the study are means over {n_prompts:,} prompts, effects over {n_pairs:,} pairs, so part of what "
        "looks like a score's error is the sample of the effects; baselines are computed on these very pairs "
        "(attribution_patching is what attribution with the loss margin is on them), and share the sample."
    )


class Truth(NamedTuple):
    """What a score is held against.

    Attributes:
        name: an ablation, or `published`.
        members: which components are in the circuit.
        effects: None where only membership is known.
        columns: the components that it speaks of, each as often as it counts.
    """

    name: str
    members: Bool[np.ndarray, "resamples measured"]
    effects: Float[np.ndarray, "resamples measured"] | None
    columns: Int[np.ndarray, " measured"]


def measured_truth(
    name: str,
    effects: Float[np.ndarray, "resamples measured"],
    gap: Float[np.ndarray, " resamples"],
    columns: Int[np.ndarray, " measured"],
) -> Truth:
    """Truth from mean effects and the mean gap between prompt and counterfactual."""
    return Truth(name, np.abs(effects) >= MEMBER_SHARE * np.abs(gap)[:, None], effects, columns)


def recovery_rows(
    scores: Sequence[Score],
    ranking: Score | None,
    truths: Sequence[Truth],
    groups: Mapping[str, Bool[np.ndarray, " components"]],
    draws: Draws,
) -> Iterator[dict[str, Any]]:
    """Rows of the evaluation table; `ranking` is the score that others are compared with."""
    for truth in truths:
        for group, inside in groups.items():
            counted = inside[truth.columns]
            base = {} if ranking is None else _figures(ranking, truth, counted)
            for score in scores:
                keys = {**score.of._asdict(), "truth": truth.name, "group": group}
                keys["n_members"] = int(truth.members[0, counted].sum())
                for figure, values in _figures(score, truth, counted).items():
                    lowest = -1.0 if figure == "spearman" else 0.0
                    yield {**keys, "figure": figure, **draws.bounded("value", values, lowest, 1.0)}
                    if score is not ranking and figure in base:
                        found = draws.bounded("value", values - base[figure])
                        yield {**keys, "figure": figure + DIFFERENCE, **found}


def _figures(
    score: Score, truth: Truth, counted: Bool[np.ndarray, " measured"]
) -> dict[str, Float[np.ndarray, " resamples"]]:
    values, members = score.resamples[:, truth.columns[counted]], truth.members[:, counted]
    figures = {"auroc": auroc(values, members), "auprc": auprc(values, members)}
    if truth.effects is not None:
        figures["spearman"] = spearman(values, truth.effects[:, counted])
    return figures


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
