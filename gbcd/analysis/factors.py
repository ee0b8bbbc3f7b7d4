"""Circuits that mix: the prompt-by-node matrix as a sum of a few non-negative patterns.

A prompt may call on several circuits at once, and its values are then a blend. With A the sizes of the statistic that
ranks components, of every prompt and head or MLP, non-negative matrix factorisation (Lee & Seung 1999; scikit-learn's
coordinate descent) finds

    A ~ W H,   W >= 0 [prompts, factors],   H >= 0 [factors, nodes]

so that a factor is a set of nodes which rise and fall together, and W says how much of each a prompt has. Rows are
divided by their sums first, or prompts with a large loss would decide alone, and columns by their means, or MLPs would.
The start is fixed (NNDSVDA, Boutsidis & Gallopoulos 2008), so the result is the same each time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import polars as pl
from jaxtyping import Float
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from gbcd.analysis.stored import PromptRows, read_prompt_rows
from gbcd.component import Component
from gbcd.errors import BadInput

#: Sweeps of the coordinate descent at most.
MAX_SWEEPS = 1000


class Factors(NamedTuple):
    """Tables of a factorisation, factors from the heaviest on.

    Attributes:
        nodes: `factor, component, layer, head, weight`; the weights of a factor add up to 1.
        prompts: `factor, prompt_id, task, loading`; the loadings of a prompt add up to 1.
        explained: share of the sum of squares of the scaled matrix that the factors account for.
    """

    nodes: pl.DataFrame
    prompts: pl.DataFrame
    explained: float


def factors(out: str, n_factors: int, wrong_answer: str | None = None) -> Factors:
    """Separate the circuits that mix in the prompts of a study, all its tasks together.

    Args:
        out: a results folder that has been reduced. Its samples are read: up to 2,000 prompts of each task.
        n_factors: how many patterns to look for; as many as there are tasks is a start.
        wrong_answer: needed where the study has several.

    Raises:
        BadInput: the study has not been reduced, the wrong answer is not of it, or there are fewer prompts or nodes
            than factors.
    """
    rows = read_prompt_rows(out, wrong_answer)
    return factorise(rows._replace(values=np.abs(rows.values)), rows.nodes, n_factors)


def factorise(rows: PromptRows, nodes: Sequence[Component], n_factors: int) -> Factors:
    """Factorise one matrix.

    Raises:
        BadInput: there are fewer prompts or nodes than factors, or fewer than one factor is asked for.
    """
    if not 1 <= n_factors <= min(rows.values.shape):
        n_prompts, n_nodes = rows.values.shape
        raise BadInput(f"{n_prompts} prompts and {n_nodes} nodes do not give {n_factors} factors")
    scaled = rows.values / np.maximum(rows.values.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    columns = np.maximum(scaled.mean(axis=0), np.finfo(float).tiny)
    scaled = scaled / columns
    model = NMF(cast(Any, n_factors), init="nndsvda", solver="cd", max_iter=MAX_SWEEPS, random_state=0)
    with warnings.catch_warnings():
        # what is left to gain after so many sweeps is below what a reader could see
        warnings.simplefilter("ignore", ConvergenceWarning)
        loadings = model.fit_transform(scaled)
    patterns = model.components_ * columns
    sizes = patterns.sum(axis=1)
    loadings, patterns = loadings * sizes, patterns / np.maximum(sizes, np.finfo(float).tiny)[:, None]
    loadings = loadings / np.maximum(loadings.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    order = np.argsort(-loadings.sum(axis=0), kind="stable")
    explained = 1 - (model.reconstruction_err_**2) / float(np.square(scaled).sum())
    return Factors(_nodes(patterns[order], nodes), _prompts(loadings[:, order], rows.prompts), float(explained))


def _nodes(patterns: Float[np.ndarray, "factors nodes"], nodes: Sequence[Component]) -> pl.DataFrame:
    rows = [
        {"factor": factor, "component": node.name, "layer": node.layer, "head": node.head, "weight": weight}
        for factor, pattern in enumerate(patterns.tolist())
        for node, weight in zip(nodes, pattern, strict=True)
    ]
    return pl.DataFrame(rows, schema_overrides={"head": pl.Int64})


def _prompts(loadings: Float[np.ndarray, "prompts factors"], prompts: pl.DataFrame) -> pl.DataFrame:
    tables = [
        prompts.select(pl.lit(factor).alias("factor"), "prompt_id", "task", pl.Series("loading", column))
        for factor, column in enumerate(loadings.T)
    ]
    return pl.concat(tables)
