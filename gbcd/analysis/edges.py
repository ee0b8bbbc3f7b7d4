"""The tables of edges and of neurons: attributions, averaged over prompts, with their intervals.

Shards keep their sums over all prompts and none by template, which would be many times as large. An interval that takes
prompts for independent is too narrow where prompts of a template resemble each other, and by how much is known of
nodes: the attribution of a node is the sum of its edges to all readers, and that of its neurons. So the interval of an
edge is widened by the factor by which templates widen that of its source (of `input`: the median factor of all nodes),
and that of a neuron by its MLP's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from gbcd.analysis.circuits import INPUT, Config, edge_ends
from gbcd.analysis.collect import Collected, Moments, ranked_nodes
from gbcd.analysis.intervals import ClusteredMoments
from gbcd.analysis.nodes import SIGNED, Key, NodeMap
from gbcd.component import Component
from gbcd.engine.tables import EDGES
from gbcd.run.results import NEURONS_FILE, read_stored
from gbcd.run.store import Store


def edge_table(collected: Collected, components: Sequence[Component], cfg: Config | None) -> pl.DataFrame | None:
    """One row per task, wrong answer and edge, in canonical order; None where the study has no edges.

    Columns: `task, wrong_answer, source, target, n, mean, std, ci_low, ci_high, sign_agreement`, with `a5.h3`, `m7` or
    `input` as a source and `a9.h1<q>`, `m8` or `logits` as a target. `sign_agreement` is the share of prompts whose
    value has the sign of the mean.

    Raises:
        ValueError: the shards have another number of edges than the model.
    """
    if cfg is None:
        return None
    ends = edge_ends(cfg)
    tables: list[pl.DataFrame] = []
    for key, moments in collected.many.items():
        if (found := moments.by_statistic.get(EDGES)) is None:
            continue
        if len(found.mean) != len(ends.sources):
            raise ValueError(f"shards hold {len(found.mean)} edges, and the model has {len(ends.sources)}")
        widened = _widened(collected.moments[key], components)
        factors = np.array([widened.get(name, 1.0) for name in ends.sources])
        tables.append(_table(key, {"source": ends.sources, "target": ends.targets}, found, factors))
    return pl.concat(tables) if tables else None


def neuron_table(collected: Collected, components: Sequence[Component]) -> pl.DataFrame | None:
    """One row per task, wrong answer, MLP and neuron; None where the study has no neurons.

    Columns: `task, wrong_answer, node, neuron, n, mean, std, ci_low, ci_high, sign_agreement`; neurons count from 0.
    """
    tables: list[pl.DataFrame] = []
    for key, moments in collected.many.items():
        widened = _widened(collected.moments[key], components)
        for node, found in moments.by_statistic.items():
            if node != EDGES:
                n = len(found.mean)
                named = {"node": [node] * n, "neuron": list(range(n))}
                tables.append(_table(key, named, found, np.full(n, widened.get(node, 1.0))))
    return pl.concat(tables) if tables else None


def read_neurons(store: Store) -> pl.DataFrame | None:
    """The table of neurons; None where the study has none."""
    return read_stored(store, NEURONS_FILE) if store.exists(NEURONS_FILE) else None


def _table(
    key: Key,
    named: Mapping[str, Sequence[Any]],
    found: ClusteredMoments,
    factors: Float[np.ndarray, " values"],
) -> pl.DataFrame:
    estimate = found.estimate()
    half = (estimate.ci_high - estimate.mean) * factors
    columns = {"mean": estimate.mean, "std": estimate.std}
    columns |= {"ci_low": estimate.mean - half, "ci_high": estimate.mean + half, "sign_agreement": found.sign_agreement}
    keys = [pl.lit(value).alias(name) for name, value in key._asdict().items()]
    numbers = pl.DataFrame(columns).fill_nan(None)
    return pl.DataFrame(dict(named)).select(*keys, pl.all(), n=pl.lit(found.n, pl.Int64)).hstack(numbers)


def _widened(moments: Moments, components: Sequence[Component]) -> dict[str, float]:
    """By source: how much wider its interval is with templates as clusters than with prompts as independent draws."""
    attribution = moments.by_statistic.get("attribution" + SIGNED)
    if attribution is None or attribution.n < 2:
        return {}
    nodes = NodeMap.of(components)
    chosen = ranked_nodes(nodes)
    columns = np.array(chosen, dtype=np.int64) + len(components)
    clustered, independent = (
        (one.ci_high - one.mean)[columns] for one in (attribution.estimate(), attribution.independent())
    )
    factors: Float[np.ndarray, " nodes"] = np.ones(len(columns))
    np.divide(clustered, independent, out=factors, where=independent > 0)
    factors = np.maximum(factors, 1.0)
    return {INPUT: float(np.median(factors))} | {
        nodes.nodes[index].name: factor for index, factor in zip(chosen, factors.tolist(), strict=True)
    }
