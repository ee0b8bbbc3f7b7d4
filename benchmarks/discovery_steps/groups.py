"""Averages over tasks and models, with intervals over prompts and over models.

A group is one model, all models, or all but the first (the scores were chosen on the first, so the others are held
out). The figure of a group is the mean over its models of the mean over tasks.

    ci          over prompts, these models given: 1.96 standard deviations of replicas. All models have the same
                prompts and the same weights of them in each replica, so what all models share is kept.
    ci_models   over prompts and models: to the margin above comes t(M - 1) s / sqrt(M) in quadrature, with s the
                standard deviation over the M models. Two or three models say little of s, and the t distribution says
                so: its factor is 12.7 for two models and 4.3 for three. s has the noise of prompts as well, which is
                thus counted twice: the interval is too wide rather than too narrow. None for one model.
    range       lowest and highest model
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gbcd.evaluation.replicas import interval
from jaxtyping import Float
from scipy.stats import t as student

from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.evaluation.agreement import auroc, spearman, stability
from gbcd.evaluation.recovery import Score, Truth

#: What is possible; figures that are not here may have any value.
BOUNDS = {"spearman": (-1.0, 1.0), "auroc": (0.0, 1.0), "stability": (0.0, 1.0), "purity": (0.0, 1.0)}


class Found(NamedTuple):
    """Figures of one score on one task of one model; each holds the estimate, then replicas if there are any."""

    model: str
    task: str
    wrong_answer: str
    method: str
    cost: float
    figures: dict[str, Float[np.ndarray, " replicas"]]


def held_against(truth: Truth, score: Score, model: str, task: str) -> Found:
    """Spearman with the sizes of effects, AUROC of membership, and stability of the circuit.

    A score whose replicas are all alike was not drawn anew, so its stability is not known.
    """
    assert truth.effects is not None
    is_drawn = bool((score.replicas != score.replicas[0]).any())
    figures = {
        "spearman": spearman(score.replicas, truth.effects),
        "auroc": auroc(score.replicas, truth.members),
        "stability": np.array([stability(score.replicas[1:], CIRCUIT_SHARE) if is_drawn else np.nan]),
    }
    return Found(model, task, score.wrong_answer or "", score.method, score.cost, figures)


def groups_of(models: Sequence[str]) -> dict[str, list[str]]:
    """Each model by itself; with several also `all`, and `held out` for all but the first."""
    alone = {model: [model] for model in models}
    return alone | {"all": list(models), "held out": list(models[1:])} if len(models) > 1 else alone


def with_differences(found: Sequence[Found], wrong_answer: str, method: str) -> list[Found]:
    """Add to each score its lead over the score named, cell by cell and replica by replica: `<figure>_lead`."""
    base = {
        (one.model, one.task): one.figures for one in found if (one.wrong_answer, one.method) == (wrong_answer, method)
    }
    return [
        one._replace(
            figures=one.figures
            | {
                f"{name}_lead": values - base[one.model, one.task][name]
                for name, values in one.figures.items()
                if name in base.get((one.model, one.task), {})
            }
        )
        for one in found
    ]


def averages(found: Sequence[Found], groups: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """A row per group, task (and `all` of them), wrong answer and method, with every figure and its intervals."""
    cells: defaultdict[tuple[str, str, str], dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        for task in dict.fromkeys((one.task, "all")):
            cells[task, one.wrong_answer, one.method][one.model].append(one)
    for group, models in groups.items():
        for (task, wrong_answer, method), by_model in cells.items():
            members = [by_model[model] for model in models if model in by_model]
            if not members:
                continue
            keys = {"group": group, "task": task, "wrong_answer": wrong_answer, "method": method}
            row: dict[str, Any] = keys | {"cost": members[0][0].cost, "n_models": len(members)}
            for name in members[0][0].figures:
                row |= _figure(name, [np.mean([one.figures[name] for one in some], axis=0) for some in members])
            yield row


def _figure(name: str, by_model: Sequence[Float[np.ndarray, " replicas"]]) -> dict[str, Any]:
    together = np.mean(by_model, axis=0)
    estimates = np.array([replicas[0] for replicas in by_model])
    low, high = BOUNDS.get(name, (-np.inf, np.inf))
    return {
        name: _number(together[0]),
        f"{name}_ci": [_number(bound) for bound in interval(together, low, high)],
        f"{name}_ci_models": _over_models(together, estimates, low, high),
        f"{name}_range": [_number(estimates.min()), _number(estimates.max())],
    }


def _over_models(
    together: Float[np.ndarray, " replicas"], estimates: Float[np.ndarray, " models"], low: float, high: float
) -> list[float | None] | None:
    n = len(estimates)
    if n == 1:
        return None
    drawn = together[1:][np.isfinite(together[1:])]
    over_prompts = 1.96 * drawn.std() if len(drawn) else 0.0
    over_models = student.ppf(0.975, n - 1) * estimates.std(ddof=1) / np.sqrt(n)
    margin = np.hypot(over_prompts, over_models)
    return [_number(max(low, together[0] - margin)), _number(min(high, together[0] + margin))]


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
