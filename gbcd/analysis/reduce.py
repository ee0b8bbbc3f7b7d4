"""From prompts to components: one pass over the committed shards gives all that is said of them later.

shards -> collect -> analysis/        sums by template, samples of prompts, counts
                  -> summary.parquet  statistics of every part and node, with score and rank
                  -> edges.parquet, neurons.parquet, circuit.json
"""

from __future__ import annotations

from shlex import quote
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from gbcd.analysis.circuit_files import circuit_files
from gbcd.analysis.circuits import Config
from gbcd.analysis.collect import Collected, Moments, collect
from gbcd.analysis.edges import edge_table, neuron_table
from gbcd.analysis.intervals import resampled_means
from gbcd.analysis.nodes import SIGNED, SUMMARISED, Key, NodeMap
from gbcd.analysis.ranking import SCORES, check_score, choose_score, rank_intervals, ranks
from gbcd.analysis.stored import store_collected
from gbcd.component import Component
from gbcd.engine.tables import ATTRIBUTIONS
from gbcd.errors import BadInput
from gbcd.run.commits import commit_path, committed_ids
from gbcd.run.results import EDGES_FILE, NEURONS_FILE, SUMMARY_FILE, encoded, read_components, runs_in_parallel
from gbcd.run.shards import read_plan
from gbcd.run.store import Store

#: Draws of templates that the intervals of ranks are taken from.
N_RESAMPLES = 400

_SIGNED = ("signed_mean", "signed_ci_low", "signed_ci_high", "sign_agreement")

SUMMARY = pl.Schema(
    {
        **{name: pl.String() for name in ("task", "wrong_answer", "level", "component", "node")},
        "layer": pl.Int32(),
        "head": pl.Int32(),
        "part": pl.String(),
        "score_name": pl.String(),
        **{name: pl.Float64() for name in ("score", "score_ci_low", "score_ci_high")},
        **{name: pl.Int32() for name in ("rank", "rank_ci_low", "rank_ci_high")},
        **{name: pl.Int64() for name in ("n", "n_prompts", "n_templates")},
        **{
            f"{statistic}_{name}": pl.Int64() if name == "n" else pl.Float64()
            for statistic in SUMMARISED
            for name in ("n", "mean", "std", "ci_low", "ci_high", *(_SIGNED if statistic in ATTRIBUTIONS else ()))
        },
    }
)
"""One row per task, wrong answer, level (`part`, `node`) and component. `part` of a node is `head`, `group`, `mlp` or,
where it has one part, that part's. `score` is what `score_name` says (`ranking.SCORES`), `n` the prompts that it is a
mean of, `n_prompts` all of the task, `n_templates` the clusters of the intervals (100 at most). `rank_ci_low` and
`rank_ci_high` bound the rank on 95 % of other draws of templates (null with one template). Of attributions `_mean` and
its interval are of sizes, `_signed_mean` and its interval of the values, and `_sign_agreement` is the share of prompts
whose value has the sign of the mean. Intervals of sizes end at 0."""


def reduce(out: str, score: str | None = None) -> pl.DataFrame:
    """Reduce what is committed in `out`; write summary, circuits and samples, return the summary.

    Args:
        out: a results folder.
        score: a name of `ranking.SCORES` to rank by, in place of the default, wherever enough prompts have it.

    Raises:
        BadInput: nothing is committed in `out`, a file is damaged, or there is no such score, or not of this study.
    """
    store = Store(out)
    plan, done = read_plan(store), committed_ids(store)
    check_score(score, plan.study.statistics)
    if not done:
        raise BadInput(
            f"nothing is committed in {store.location!r}, so there is nothing to reduce: run the study first"
        )
    if unplanned := done - set(range(len(plan.shards))):  # copied here from another study, they would count twice
        raise BadInput(
            f"{store.location}/{commit_path(min(unplanned))} is of a shard that is not planned here; "
            f"`gbcd verify --repair {quote(store.root)}` removes it"
        )
    components = read_components(store)
    collected = collect(store, components)
    summary = summarise(collected, components, score)
    store_collected(store, collected, components)
    store.write(SUMMARY_FILE, encoded(summary.to_arrow()))
    cfg = Config.of(components, runs_in_parallel(store))
    edges = edge_table(collected, components, cfg)
    for name, found in ((EDGES_FILE, edges), (NEURONS_FILE, neuron_table(collected, components))):
        if found is not None:
            store.write(name, encoded(found.to_arrow()))
    for name, content in circuit_files(summary, cfg, edges).items():
        store.write(name, content)
    return summary


def summarise(collected: Collected, components: list[Component], score: str | None = None) -> pl.DataFrame:
    """The table `SUMMARY` of what was collected."""
    tables = [_table(key, moments, components, score) for key, moments in collected.moments.items()]
    return pl.concat([pl.DataFrame(schema=SUMMARY), *tables])


def _table(key: Key, moments: Moments, components: list[Component], wanted: str | None) -> pl.DataFrame:
    nodes = NodeMap.of(components).nodes
    columns, name = [*components, *nodes], choose_score(moments.counts, wanted)
    table: dict[str, Any] = {
        **key._asdict(),
        "level": ["part"] * len(components) + ["node"] * len(nodes),
        "component": [column.name for column in columns],
        **{of: [getattr(column, of) for column in columns] for of in ("node", "layer", "head", "part")},
        "score_name": name,
        "n": moments.counts[SCORES[name]] if name else 0,
        "n_prompts": moments.n_rows,
        "n_templates": len(moments.clusters.names),
        **{f"{statistic}_n": moments.counts.get(statistic, 0) for statistic in SUMMARISED},
    }
    estimates = _estimates(moments) | _score(moments, name) | _ranks(moments, components, nodes, name)
    table |= {column: pl.Series(values, nan_to_null=True) for column, values in estimates.items()}
    return pl.DataFrame({column: table.get(column) for column in SUMMARY}, schema=SUMMARY)


def _estimates(moments: Moments) -> dict[str, Float[np.ndarray, " columns"]]:
    found: dict[str, np.ndarray] = {}
    for statistic, some in moments.by_statistic.items():
        estimate = some.estimate()
        if statistic.endswith(SIGNED):
            name = statistic.removesuffix(SIGNED)
            values = (estimate.mean, estimate.ci_low, estimate.ci_high, some.sign_agreement)
            found |= {f"{name}_{of}": column for of, column in zip(_SIGNED, values, strict=True)}
        else:
            above = estimate._replace(ci_low=np.maximum(estimate.ci_low, 0.0))
            found |= {f"{statistic}_{of}": column for of, column in above._asdict().items()}
    return found


def _score(moments: Moments, name: str | None) -> dict[str, Float[np.ndarray, " columns"]]:
    """Score and interval. Where it is the size of a signed mean, so are its bounds, and no sign is no distance."""
    if name is None:
        return {}
    mean, _, low, high = moments.by_statistic[SCORES[name]].estimate()
    low, high = np.where(mean < 0, -high, low), np.where(mean < 0, -low, high)
    return {"score": np.abs(mean), "score_ci_low": np.maximum(low, 0.0), "score_ci_high": high}


def _ranks(
    moments: Moments, components: list[Component], nodes: tuple[Component, ...], name: str | None
) -> dict[str, Float[np.ndarray, " columns"]]:
    """Ranks with their intervals, of parts and of nodes."""
    if name is None:
        return {}
    some, n = moments.by_statistic[SCORES[name]], len(components)
    resampled = resampled_means(some.sums, some.sizes, N_RESAMPLES, seed=0)
    sizes = None if resampled is None else np.abs(resampled)
    found = [
        np.vstack([ranks(level, np.abs(some.mean[at])), rank_intervals(level, None if sizes is None else sizes[:, at])])
        for at, level in ((slice(n), components), (slice(n, None), nodes))
    ]
    return dict(zip(("rank", "rank_ci_low", "rank_ci_high"), np.concatenate(found, axis=1), strict=True))
