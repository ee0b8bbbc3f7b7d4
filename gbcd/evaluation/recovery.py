"""How well each score recovers the truth, as a table: one row per score, truth, group of components and figure.

Truth is measured (a component is in the circuit if its effect is at least a tenth of the gap between prompt and
counterfactual, in either direction) or published. Every figure is computed on the estimate and on each replica, in
which scores and effects are drawn anew; the spread of the replicas is its interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.evaluation.agreement import auprc, auroc, spearman, stability
from gbcd.evaluation.replicas import interval

#: Effects below this share of the gap between prompt and counterfactual are outside the measured circuit.
MEMBER_SHARE = 0.1


class Score(NamedTuple):
    """One score of all components.

    Attributes:
        method: what it is.
        wrong_answer: the definition that its gradients are of; None for a baseline.
        replicas: the estimate, then replicas.
        cost: forward passes per prompt that it takes, a backward pass counted as one.
    """

    method: str
    wrong_answer: str | None
    replicas: Float[np.ndarray, "replicas components"]
    cost: float

    @property
    def keys(self) -> dict[str, Any]:
        """Columns that name the score in a table."""
        return {"wrong_answer": self.wrong_answer, "method": self.method, "cost": self.cost}


class Truth(NamedTuple):
    """What a score is held against; `effects` is None where only membership is known."""

    name: str
    members: Bool[np.ndarray, "replicas components"]
    effects: Float[np.ndarray, "replicas components"] | None


def measured_truth(
    name: str, effects: Float[np.ndarray, "replicas components"], gap: Float[np.ndarray, " replicas"]
) -> Truth:
    """Truth from mean effects and the mean gap between prompt and counterfactual."""
    return Truth(name, np.abs(effects) >= MEMBER_SHARE * np.abs(gap)[:, None], effects)


def published_truth(members: Sequence[bool], n_replicas: int) -> Truth:
    """Truth from a published list, the same in every replica."""
    return Truth("published", np.tile(np.array(members), (n_replicas, 1)), None)


def recovery_rows(
    scores: Sequence[Score], truths: Sequence[Truth], groups: Mapping[str, Bool[np.ndarray, " components"]]
) -> Iterator[dict[str, Any]]:
    """Rows of the evaluation table."""
    for score in scores:
        stable = stability(score.replicas[1:], CIRCUIT_SHARE)
        yield {**score.keys, "group": "all", "figure": "stability", "value": stable}
        for truth in truths:
            for group, inside in groups.items():
                for figure, values in _figures(score, truth, inside).items():
                    low, high = interval(values, -1.0 if figure == "spearman" else 0.0, 1.0)
                    found = {"figure": figure, "value": float(values[0]), "ci_low": low, "ci_high": high}
                    n_members = int(truth.members[0, inside].sum())
                    yield {**score.keys, "truth": truth.name, "group": group, "n_members": n_members, **found}


def _figures(
    score: Score, truth: Truth, inside: Bool[np.ndarray, " components"]
) -> dict[str, Float[np.ndarray, " replicas"]]:
    values, members = score.replicas[:, inside], truth.members[:, inside]
    figures = {
        "auroc": auroc(values, members),
        "auroc_pessimistic": auroc(values, members, pessimistic=True),
        "auprc": auprc(values, members),
    }
    if truth.effects is not None:
        figures["spearman"] = spearman(values, truth.effects[:, inside])
    return figures
