"""How prompts differ in the components that they use: circuits that mix, and kinds of prompts.

`factors`. The prompt-by-node matrix as a sum of a few non-negative patterns.

A prompt may call on several circuits at once, and its values are then a blend. With A the sizes of the statistic that
ranks components, of every prompt and head or MLP, non-negative matrix factorisation (Lee & Seung 1999; scikit-learn's
coordinate descent) finds

    A ~ W H,   W >= 0 [prompts, factors],   H >= 0 [factors, nodes]

so that a factor is a set of nodes which rise and fall together, and W says how much of each a prompt has. Rows are
divided by their sums first, or prompts with a large loss would decide alone, and columns by their means, or MLPs would.
The start is fixed (NNDSVDA, Boutsidis & Gallopoulos 2008), so the result is the same each time.

`clusters`. Clusters of the stored attributions, with a circuit and a description of each.

A mean over all prompts hides that some are solved in one way and some in another (arXiv 2605.09129 clusters prompts by
attribution and finds a circuit for each cluster). Each prompt is the vector of its heads' and MLPs' values, divided by
its length, so that prompts with a large loss do not stand apart; k-means (scikit-learn, fixed seed) gives the clusters.

Any data fall into clusters. As a control, the values of every node are permuted over the prompts, each node by itself:
that keeps every distribution and destroys what nodes have in common. `p` is the share of such permutations (the data
counted among them) whose clusters explain as much as those of the data.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_mutual_info_score

from gbcd.analysis.circuit_files import best_nodes
from gbcd.analysis.circuits import Circuit, Config, node_names
from gbcd.analysis.stored import PromptRows, read_prompt_rows
from gbcd.component import Component
from gbcd.errors import BadInput
from gbcd.run.results import read_components, runs_in_parallel
from gbcd.run.store import Store

#: Sweeps of the coordinate descent at most.
MAX_SWEEPS = 1000

#: Permutations of the control.
N_PERMUTATIONS = 19

#: Starts of k-means, of which the best is kept.
N_STARTS = 10

#: Templates and words that a description names.
NAMED = 5

#: Words in fewer prompts of a cluster are no description of it.
MIN_SHARE = 0.1


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
    return factorise(rows._replace(values=np.abs(rows.values)), n_factors)


def factorise(rows: PromptRows, n_factors: int) -> Factors:
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
    weights = (_by_node(rows.nodes, "factor", number, "weight", one) for number, one in enumerate(patterns[order]))
    return Factors(pl.concat(weights), _prompt_loadings(loadings[:, order], rows.prompts), float(explained))


def _by_node(
    nodes: Sequence[Component], group: str, number: int, column: str, values: Float[np.ndarray, " nodes"]
) -> pl.DataFrame:
    """A row per node: the number of the group, which node, and its value in a column."""
    described = [{"component": node.name, "layer": node.layer, "head": node.head} for node in nodes]
    table = pl.DataFrame(described, schema_overrides={"head": pl.Int64})
    return table.select(pl.lit(number).alias(group), pl.all(), pl.Series(column, values))


def _prompt_loadings(loadings: Float[np.ndarray, "prompts factors"], prompts: pl.DataFrame) -> pl.DataFrame:
    tables = [
        prompts.select(pl.lit(factor).alias("factor"), "prompt_id", "task", pl.Series("loading", column))
        for factor, column in enumerate(loadings.T)
    ]
    return pl.concat(tables)


class Clusters(NamedTuple):
    """Clusters of prompts, the largest first.

    Attributes:
        prompts: rows of `gbcd.prompts`, with the column `cluster`.
        nodes: `cluster, component, layer, head, score, rank`: size of the mean over the cluster's prompts.
        descriptions: one row per cluster: `cluster, n, share`, `templates` and `words` (those that are more frequent in
            it than elsewhere: `name, share, elsewhere`), `margin` (mean answer logit minus wrong logit) and `correct`.
        circuits: the best nodes of each; empty for a model that the format cannot describe.
        explained: share of the sum of squares about the mean that lies between clusters.
        permuted: the same for every permutation of the control.
        p: share of permutations, with the data, that explain as much.
        template_agreement: adjusted mutual information of clusters and templates: 1 where clusters are templates, 0
            where they are unrelated.
    """

    prompts: pl.DataFrame
    nodes: pl.DataFrame
    descriptions: pl.DataFrame
    circuits: dict[int, Circuit]
    explained: float
    permuted: list[float]
    p: float
    template_agreement: float


def clusters(out: str, n_clusters: int, task: str | None = None, wrong_answer: str | None = None) -> Clusters:
    """Group the prompts of a study by the components that they use.

    Args:
        out: a results folder that has been reduced. Its samples are read: up to 2,000 prompts of each task.
        n_clusters: how many groups to make.
        task: one task only; all of them together where there is none.
        wrong_answer: needed where the study has several.

    Raises:
        BadInput: the study has not been reduced, the wrong answer or task is not of it, or there are fewer prompts than
            clusters.
    """
    rows = read_prompt_rows(out, wrong_answer)
    if task is not None:
        chosen = np.flatnonzero((rows.prompts["task"] == task).to_numpy())
        rows = rows._replace(values=rows.values[chosen], prompts=rows.prompts[chosen])
    store = Store(out)
    return cluster(rows, n_clusters, Config.of(read_components(store), runs_in_parallel(store)))


def cluster(rows: PromptRows, n_clusters: int, cfg: Config | None = None) -> Clusters:
    """Group prompts; `cfg` is the shape of the model, for circuits.

    Raises:
        BadInput: there are fewer prompts than clusters, or fewer than one cluster is asked for.
    """
    if not 1 <= n_clusters <= len(rows.values):
        raise BadInput(f"{len(rows.values)} prompts do not give {n_clusters} clusters")
    lengths = np.linalg.norm(rows.values, axis=1, keepdims=True)
    directions = rows.values / np.maximum(lengths, np.finfo(float).tiny)
    labels, explained = _grouped(directions, n_clusters)
    rng = np.random.default_rng(0)
    permuted = [_grouped(rng.permuted(directions, axis=0), n_clusters)[1] for _ in range(N_PERMUTATIONS)]
    prompts = rows.prompts.with_columns(cluster=pl.Series(labels))
    nodes = pl.concat([_nodes(rows, labels, number) for number in range(n_clusters)])
    found = [_description(prompts, number) for number in range(n_clusters)]
    return Clusters(
        prompts=prompts,
        nodes=nodes,
        descriptions=pl.DataFrame(found, schema_overrides={"margin": pl.Float64, "correct": pl.Float64}),
        circuits={} if cfg is None else {number: _circuit(cfg, nodes, number) for number in range(n_clusters)},
        explained=explained,
        permuted=permuted,
        p=(1 + sum(value >= explained for value in permuted)) / (1 + N_PERMUTATIONS),
        template_agreement=float(adjusted_mutual_info_score(rows.prompts["template"].to_list(), labels)),
    )


def _grouped(
    directions: Float[np.ndarray, "prompts nodes"], n_clusters: int
) -> tuple[Int[np.ndarray, " prompts"], float]:
    """Clusters by number, the largest first, and what they explain."""
    model = KMeans(n_clusters, n_init=cast(Any, N_STARTS), random_state=0).fit(directions)
    labels, within = np.asarray(model.predict(directions)), -float(model.score(directions))
    order = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    total = float(np.square(directions - directions.mean(axis=0)).sum())
    return np.argsort(order)[labels], 1 - within / total if total > 0 else 0.0


def _nodes(rows: PromptRows, labels: Int[np.ndarray, " prompts"], number: int) -> pl.DataFrame:
    scores = np.abs(rows.values[labels == number].mean(axis=0))
    return (
        _by_node(rows.nodes, "cluster", number, "score", scores)
        .with_columns(rank=pl.col("score").rank("ordinal", descending=True).cast(pl.Int64))
        .sort("rank")
    )


def _circuit(cfg: Config, nodes: pl.DataFrame, number: int) -> Circuit:
    known = nodes.filter(pl.col("cluster") == number, pl.col("component").is_in(node_names(cfg)))
    return best_nodes(cfg, known.with_columns(score_name=pl.lit("mean over the cluster")))


def _description(prompts: pl.DataFrame, number: int) -> dict[str, Any]:
    inside = prompts["cluster"] == number
    one, rest = prompts.filter(inside), prompts.filter(~inside)
    words = {"words": _shares([_words(text) for text in one["prompt"]], [_words(text) for text in rest["prompt"]])}
    return {
        "cluster": number,
        "n": one.height,
        "share": one.height / prompts.height,
        "templates": _shares([{name} for name in one["template"]], [{name} for name in rest["template"]]),
        **words,
        "margin": one.select((pl.col("answer_logit") - pl.col("wrong_logit")).mean()).item(),
        "correct": one.select(pl.col("correct").mean()).item(),
    }


def _shares(inside: list[set[str]], rest: list[set[str]]) -> list[dict[str, Any]]:
    """The names that are more frequent inside than in the rest, by the difference of the shares."""
    found: list[dict[str, Any]] = []
    for name in sorted(set[str]().union(*inside)):
        share = sum(name in names for names in inside) / len(inside)
        elsewhere = sum(name in names for names in rest) / max(len(rest), 1)
        if share > elsewhere and share >= MIN_SHARE:
            found.append({"name": name, "share": share, "elsewhere": elsewhere})
    return sorted(found, key=lambda row: row["elsewhere"] - row["share"])[:NAMED]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))
