"""How well each score recovers the truth, as a table: one row per score, truth, group of components and figure.

Truth is measured (a component is in the circuit if its effect is at least a tenth of the gap between prompt and
counterfactual, in either direction) or published. Every figure is computed on the estimate and on each resample, in
which scores and effects are drawn anew; the spread of the resamples is its interval. So is the difference of a figure
to that of the score that ranks the study's components: one score is better than another only where the interval of
their difference leaves zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from gbcd.evaluation.agreement import auprc, auroc, spearman
from gbcd.evaluation.resampling import Draws

#: Effects below this share of the gap between prompt and counterfactual are outside the measured circuit.
MEMBER_SHARE = 0.1

#: Ends the name of a figure that is the difference to the score that ranks components.
DIFFERENCE = "_difference"


class Score(NamedTuple):
    """One score of all components.

    Attributes:
        method: what it is.
        wrong_answer: the definition that its gradients are of; None for a baseline.
        resamples: of its sizes: the estimate, then resamples.
        cost: forward passes per prompt that it takes, a backward pass counted as one.
    """

    method: str
    wrong_answer: str | None
    resamples: Float[np.ndarray, "resamples components"]
    cost: float

    @property
    def keys(self) -> dict[str, Any]:
        """Columns that name the score in a table."""
        return {"wrong_answer": self.wrong_answer, "method": self.method, "cost": self.cost}


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
    effects: Float[np.ndarray, "resamples components"],
    gap: Float[np.ndarray, " resamples"],
    columns: Int[np.ndarray, " measured"],
) -> Truth:
    """Truth from mean effects and the mean gap between prompt and counterfactual."""
    effects = effects[:, columns]
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
                keys = {**score.keys, "truth": truth.name, "group": group}
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
