"""The table of edges: attribution of every edge, averaged over prompts, with its interval."""

from __future__ import annotations

import polars as pl

from gbcd.analysis.circuits import Config, edge_ends
from gbcd.analysis.collect import Collected

EDGES_FILE = "edges.parquet"


def edge_table(collected: Collected, cfg: Config | None) -> pl.DataFrame | None:
    """One row per task, wrong answer and edge, in canonical order; None where the study has no edges.

    Columns: `task, wrong_answer, source, target, n, mean, std, ci_low, ci_high, sign_agreement`, with `a5.h3`, `m7` or
    `input` as a source and `a9.h1<q>`, `m8` or `logits` as a target. `sign_agreement` is the share of prompts whose
    value has the sign of the mean.

    Raises:
        ValueError: the shards have another number of edges than the model.
    """
    if cfg is None or not collected.edges:
        return None
    ends = edge_ends(cfg)
    tables: list[pl.DataFrame] = []
    for key, moments in collected.edges.items():
        found = moments.by_statistic["edges"]
        if len(found.mean) != len(ends.sources):
            raise ValueError(f"shards hold {len(found.mean)} edges, and the model has {len(ends.sources)}")
        if not found.n:
            continue
        columns = {"source": ends.sources, "target": ends.targets, **found.estimate()._asdict()}
        columns["sign_agreement"] = found.sign_agreement
        keys = [pl.lit(value).alias(name) for name, value in key._asdict().items()]
        n = pl.lit(found.n, pl.Int64).alias("n")
        order = ("source", "target", "n", "mean", "std", "ci_low", "ci_high", "sign_agreement")
        tables.append(pl.DataFrame(columns).with_columns(n).select(*keys, *order).fill_nan(None))
    return pl.concat(tables) if tables else None
