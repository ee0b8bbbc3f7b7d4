"""Do the instruments against interference help? The contrast between tasks, and circuits that mix, as scores.

    specificity         share of the node's default score in its task, over its mean share in the other tasks
                        (`gbcd.specificity`, with replicas)
    share less others   the difference of these two instead of their ratio
    factor of the task  prompts of all tasks, factorised together into as many patterns as there are tasks
                        (`gbcd.factors`); each task is given the pattern whose loadings tell its prompts best from
                        others (one pattern a task, assignment by Kuhn 1955), and the weights of its nodes are the score

How well factors separate tasks is measured too: `purity`, the share of prompts that are of the task which most
prompts with the same largest pattern are of, and `auroc_of_tasks`, how well the loading of a task's own pattern tells
its prompts from others, a mean over tasks. Both come with a control in which the labels of prompts are permuted.
Replicas draw prompts anew and keep the factorisation, so their intervals are of the separation, not of the patterns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from gbcd.evaluation.replicas import N_REPLICAS
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from discovery_steps.cells import DEFAULT_ANSWER, DEFAULT_SCORE, RAW_SCORE, Cell
from discovery_steps.groups import Found, held_against
from gbcd.analysis.factors import PromptRows, factorise
from gbcd.evaluation.agreement import auroc
from gbcd.evaluation.recovery import Score


def specificity_found(cells: Sequence[Cell]) -> Iterator[Found]:
    """Contrast between the tasks of one model."""
    shares = [cell.shares / cell.shares.mean(axis=1, keepdims=True) for cell in cells]
    for cell, share in zip(cells, shares, strict=True):
        elsewhere = (sum(shares) - share) / (len(cells) - 1)
        for method, values in (("specificity", share / elsewhere), ("share less others", share - elsewhere)):
            yield held_against(cell.truth, Score(method, DEFAULT_ANSWER, values, 2.0), cell.model, cell.task)


def factors_found(cells: Sequence[Cell], seed: int) -> tuple[list[Found], list[Found]]:
    """Patterns of one model as scores of nodes, and how well they separate tasks."""
    as_scores: list[Found] = []
    separation: list[Found] = []
    for method in (DEFAULT_SCORE, RAW_SCORE):
        loadings, patterns, labels = _factorised(cells, method)
        matched = _matched(_aurocs(loadings, labels[None], len(cells))[0])
        rng = np.random.default_rng(seed)
        for number, cell in enumerate(cells):
            weights = np.tile(patterns[matched[number]], (len(cell.shares), 1))
            score = Score(f"factor of the task, {method}", DEFAULT_ANSWER, weights, 2.0)
            as_scores.append(held_against(cell.truth, score, cell.model, cell.task))
        figures = _separation(loadings, labels, matched, rng)
        separation.append(Found(cells[0].model, "all", DEFAULT_ANSWER, f"factors of {method}", 2.0, figures))
    return as_scores, separation


def _factorised(
    cells: Sequence[Cell], method: str
) -> tuple[Float[np.ndarray, "prompts factors"], Float[np.ndarray, "factors nodes"], Int[np.ndarray, " prompts"]]:
    values = np.concatenate([cell.per_prompt[method] for cell in cells])
    labels = np.repeat(np.arange(len(cells)), [len(cell.per_prompt[method]) for cell in cells])
    prompts = pl.DataFrame({"prompt_id": np.arange(len(labels)).astype(str), "task": labels.astype(str)})
    found = factorise(PromptRows(values, prompts), cells[0].nodes, len(cells))
    loadings = found.prompts["loading"].to_numpy().reshape(len(cells), len(labels)).T
    return loadings, found.nodes["weight"].to_numpy().reshape(len(cells), -1), labels


def _separation(
    loadings: Float[np.ndarray, "prompts factors"],
    labels: Int[np.ndarray, " prompts"],
    matched: Int[np.ndarray, " tasks"],
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, " replicas"]]:
    n_tasks = len(matched)
    drawn = np.concatenate([np.arange(len(labels))[None], rng.integers(0, len(labels), (N_REPLICAS, len(labels)))])
    permuted = np.stack([rng.permutation(labels) for _ in range(N_REPLICAS)])
    own = np.stack([_aurocs(loadings[rows], labels[None, rows], n_tasks)[0] for rows in drawn])
    # the control may match patterns and tasks anew, since that is what a user of it could do
    by_chance = [one[np.arange(n_tasks), _matched(one)].mean() for one in _aurocs(loadings, permuted, n_tasks)]
    pure_by_chance = [_purity(loadings, one, n_tasks) for one in permuted]
    return {
        "purity": np.array([_purity(loadings[rows], labels[rows], n_tasks) for rows in drawn]),
        "purity_permuted": np.array([np.mean(pure_by_chance), *pure_by_chance]),
        "auroc_of_tasks": own[:, np.arange(n_tasks), matched].mean(axis=1),
        "auroc_of_tasks_permuted": np.array([np.mean(by_chance), *by_chance]),
    }


def _purity(loadings: Float[np.ndarray, "prompts factors"], labels: Int[np.ndarray, " prompts"], n_tasks: int) -> float:
    largest = loadings.argmax(axis=1)
    return sum(np.bincount(labels[largest == factor], minlength=n_tasks).max() for factor in range(n_tasks)) / len(
        labels
    )


def _aurocs(
    loadings: Float[np.ndarray, "prompts factors"], labels: Int[np.ndarray, "draws prompts"], n_tasks: int
) -> Float[np.ndarray, "draws tasks factors"]:
    """How well each pattern's loading tells the prompts of each task from the others."""
    found = np.empty((len(labels), n_tasks, loadings.shape[1]))
    for task in range(n_tasks):
        members = labels == task
        for factor, column in enumerate(loadings.T):
            found[:, task, factor] = auroc(np.broadcast_to(column, members.shape), members)
    return found


def _matched(aurocs: Float[np.ndarray, "tasks factors"]) -> Int[np.ndarray, " tasks"]:
    return linear_sum_assignment(aurocs, maximize=True)[1]
