"""Does a circuit do the model's work? Circuits of growing size by each score, and one circuit taken apart.

With m the task's metric, C_k the k largest components by a score, N all of them, and everything outside resampled:

    faithfulness   (m(C_k) - m(0)) / (m(N) - m(0)); CPR is the area under it, CMD the area between it and 1
    completeness   mean over random halves K of the circuit C of |m(N - K) - m(C - K)| / (m(N) - m(0)): a circuit that
                   has everything behaves like the model when both lose the same (Wang et al. 2022, arXiv
                   2211.00593, section 4.2); lower is better
    minimality     smallest over components v of C of |m(C) - m(C - v)| / (m(N) - m(0)): 0 says that one is idle
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.evaluation.agreement import SIZES, cmd, cpr, faithfulness, largest, share_of_gap
from gbcd.evaluation.interventions import circuit_metrics
from gbcd.evaluation.metrics import Metric
from gbcd.evaluation.pairs import Pairs
from gbcd.evaluation.places import Place
from gbcd.evaluation.recovery import Score
from gbcd.evaluation.replicas import interval, means
from gbcd.evaluation.steps import Watch, unwatched
from gbcd.models.load import LoadedModel

#: Random halves of a circuit for completeness.
N_HALVES = 10


class Curves(NamedTuple):
    """`rows` of the faithfulness table, and `figures` for the evaluation table."""

    rows: list[dict[str, Any]]
    figures: list[dict[str, Any]]


class CircuitRunner:
    """Runs circuits on pairs, each set of components once."""

    def __init__(
        self,
        loaded: LoadedModel,
        pairs: Pairs,
        places: Sequence[Place],
        metric: Metric,
        weights: Float[np.ndarray, "replicas prompts"],
        watch: Watch = unwatched,
    ) -> None:
        """Run nothing yet."""
        self._case = loaded, pairs, places
        self._metric, self._weights, self._watch = metric, weights, watch
        self._known: dict[frozenset[int], Float[np.ndarray, " replicas"]] = {}
        self.everything = frozenset(range(len(places)))

    def run(self, circuits: Sequence[frozenset[int]]) -> list[Float[np.ndarray, " replicas"]]:
        """Mean metric of each circuit, given by the indices of its components; estimate and replicas."""
        loaded, pairs, places = self._case
        new = [circuit for circuit in dict.fromkeys(circuits) if circuit not in self._known]
        if new:
            names = [{places[index].name for index in circuit} for circuit in new]
            found = means(self._weights, circuit_metrics(loaded, pairs, places, names, self._metric, self._watch).T)
            self._known |= dict(zip(new, found.T, strict=True))
        return [self._known[circuit] for circuit in circuits]


def faithfulness_curves(runner: CircuitRunner, scores: Sequence[Score]) -> Curves:
    """Faithfulness at every size of `SIZES`, CPR and CMD, for every score."""
    curves = Curves([], [])
    runner.run([frozenset(), runner.everything, *(circuit for score in scores for circuit in _cuts(score))])
    for score in scores:
        curve = faithfulness_curve(runner, score)
        for column, (size, cut) in enumerate(zip(SIZES, _cuts(score), strict=True)):
            sized = {"size": size, "n_components": len(cut)}
            curves.rows.append({**score.keys, **sized, **_value("faithfulness", curve[:, column])})
        areas = {"cpr": cpr, "cmd": cmd}
        for name, area in areas.items():
            values = np.array([area(row) for row in curve])
            curves.figures.append({**score.keys, "group": "all", "figure": name, **_value("value", values)})
    return curves


def faithfulness_curve(runner: CircuitRunner, score: Score) -> Float[np.ndarray, "replicas sizes"]:
    """Faithfulness of the circuits of one score at every size of `SIZES`; estimate and replicas."""
    nothing, everything, *found = runner.run([frozenset(), runner.everything, *_cuts(score)])
    return faithfulness(np.stack(found).T, nothing[:, None], everything[:, None])


def _cuts(score: Score) -> list[frozenset[int]]:
    return [frozenset(largest(score.replicas[0], size)) for size in SIZES]


def taken_apart(runner: CircuitRunner, score: Score, seed: int) -> list[dict[str, Any]]:
    """Completeness and minimality of the circuit that `score` gives at `CIRCUIT_SHARE`."""
    figures = dissection(runner, score, seed)
    return [
        {**score.keys, "group": "all", "figure": name, **_value("value", values)} for name, values in figures.items()
    ]


def dissection(runner: CircuitRunner, score: Score, seed: int) -> dict[str, Float[np.ndarray, " replicas"]]:
    """The same as estimate and replicas, by name; nothing where the circuit is empty."""
    circuit = frozenset(largest(score.replicas[0], CIRCUIT_SHARE))
    if not circuit:
        return {}
    rng = np.random.default_rng(seed)
    members = sorted(circuit)
    halves = [frozenset(rng.permutation(members)[: (len(members) + 1) // 2].tolist()) for _ in range(N_HALVES)]
    model_less = [runner.everything - half for half in halves]
    circuit_less = [circuit - half for half in halves]
    without = [circuit - {member} for member in members]
    found = runner.run([frozenset(), runner.everything, circuit, *model_less, *circuit_less, *without])
    nothing, everything, whole = found[:3]
    gap, rest = everything - nothing, np.stack(found[3:])
    return {
        "completeness": share_of_gap(np.abs(rest[:N_HALVES] - rest[N_HALVES : 2 * N_HALVES]).mean(axis=0), gap),
        "minimality": share_of_gap(np.abs(whole - rest[2 * N_HALVES :]).min(axis=0), gap),
    }


def _value(name: str, replicas: Float[np.ndarray, " replicas"]) -> dict[str, float]:
    low, high = interval(replicas)
    return {name: float(replicas[0]), "ci_low": low, "ci_high": high}
