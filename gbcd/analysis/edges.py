"""The table of edges: attribution of every edge, averaged over prompts, with its interval.

Shards keep sums of edges over all prompts and none by template, which would be many times as large. An interval that
takes prompts for independent is too narrow where prompts of a template resemble each other, and by how much is known of
nodes: the attribution of a node is the sum of its edges to all readers. So the interval of an edge is widened by the
factor by which templates widen that of its source (of `input`: the median factor of all nodes).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from gbcd.analysis.circuits import INPUT, Config, edge_ends
from gbcd.analysis.collect import Collected, Moments, ranked_nodes
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import SIGNED
from gbcd.component import Component

EDGES_FILE = "edges.parquet"

_COLUMNS = ("source", "target", "n", "mean", "std", "ci_low", "ci_high", "sign_agreement")


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
    for key, moments in collected.edges.items():
        if (found := moments.by_statistic.get("edges")) is None:
            continue
        if len(found.mean) != len(ends.sources):
            raise ValueError(f"shards hold {len(found.mean)} edges, and the model has {len(ends.sources)}")
        widened = _widened(collected.moments[key], components)
        estimate = found.estimate()
        half = (estimate.ci_high - estimate.mean) * np.array([widened.get(name, 1.0) for name in ends.sources])
        columns = {"source": ends.sources, "target": ends.targets, "mean": estimate.mean, "std": estimate.std}
        columns |= {"ci_low": estimate.mean - half, "ci_high": estimate.mean + half}
        table = pl.DataFrame(columns | {"sign_agreement": found.sign_agreement}).fill_nan(None)
        keys = [pl.lit(value).alias(name) for name, value in key._asdict().items()]
        tables.append(table.with_columns(n=pl.lit(found.n, pl.Int64)).select(*keys, *_COLUMNS))
    return pl.concat(tables) if tables else None


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
