"""From prompts to components: one pass over the committed shards gives the summary of every part and node.

Shards come in the order of the plan and are forgotten once added, so memory depends on the model and on the number of
tasks and wrong answers, never on the number of prompts, and the bytes of the result depend on the shards alone.
Per prompt, parts become nodes first (`nodes.py`) and are averaged afterwards (`intervals.py`): the norm of a node is
averaged, not the norms of its parts. Signal and noise come from sums over batches: with `S = ||sum_i G_i||^2` and
`q = sum_i ||G_i||^2` over a batch of b prompts drawn at random, `E[S - q] = b (b - 1) ||E G||^2`, hence

    signal = sum (S - q) / sum b (b - 1)        an unbiased estimate of ||E G||^2; it can fall below zero
    noise  = sum q / sum b - signal             the same for E ||G - E G||^2

A prompt whose gradient is not finite is in no average: `n` counts what is averaged, `n_excluded` what is not. Fewer
prompts can have a centred norm (`n_centered`): those longer than the calibration reaches have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float

from gbcd.analysis.circuits import Config, circuit_files
from gbcd.analysis.heatmap import draw_heatmaps
from gbcd.analysis.intervals import ClusteredMoments
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.quantiles import LogHistogram
from gbcd.analysis.ranking import rank_intervals, ranks, score_statistic
from gbcd.analysis.shard_values import SIGNED, SUMMARISED, Key, finite_values, keys, rows_of
from gbcd.component import Component
from gbcd.engine.tables import ShardTables
from gbcd.errors import BadInput
from gbcd.run.commits import committed_ids
from gbcd.run.results import SUMMARY_FILE, encoded, read_components, runs_in_parallel, shard_tables
from gbcd.run.store import Store

#: Draws of templates that the intervals of ranks are taken from.
N_REPLICAS = 400

QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}

_ESTIMATES = ("mean", "std", "ci_low", "ci_high")

SUMMARY = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "wrong_answer", "level", "component", "node")),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("part", pa.string()),
        *((name, pa.int64()) for name in ("n", "n_centered", "n_excluded", "n_templates")),
        *((f"{statistic}_{name}", pa.float64()) for statistic in SUMMARISED for name in (*_ESTIMATES, *QUANTILES)),
        *((name, pa.float64()) for name in ("taylor_signed_mean", "signal", "noise", "cv", "score")),
        *((name, pa.int32()) for name in ("rank", "rank_ci_low", "rank_ci_high")),
    ]
)
"""One row per task, wrong answer, level (`part`, `node`) and component. `taylor_mean` and its like are of the absolute
value, `taylor_signed_mean` of the signed one; `cv` is standard deviation over mean of the statistic that is the score.
Intervals of these sizes end at 0.
`part` of a node is `head`, `mlp` or, where it has one part, that part's. `rank_ci_low`, `rank_ci_high` bound the rank
on 95 % of other draws of templates (null with one template); `_p05`, `_p50`, `_p95` are quantiles over prompts."""


def _no_moments() -> dict[str, ClusteredMoments]:
    return {name: ClusteredMoments() for name in (*SUMMARISED, SIGNED)}


@dataclass
class _Group:
    """Running sums of one task and wrong answer; columns are the parts, then the nodes."""

    nodes: NodeMap
    n_parts: int
    n_rows: int = 0
    moments: dict[str, ClusteredMoments] = field(default_factory=_no_moments)
    histograms: dict[str, LogHistogram] = field(default_factory=dict[str, LogHistogram])
    pairs: Float[np.ndarray, " parts"] = field(init=False)
    draws: Float[np.ndarray, " parts"] = field(init=False)
    excess: Float[np.ndarray, " parts"] = field(init=False)
    squares: Float[np.ndarray, " parts"] = field(init=False)

    def __post_init__(self) -> None:
        """Start the sums over batches at zero."""
        self.pairs, self.draws, self.excess, self.squares = np.zeros((4, self.n_parts))

    @property
    def n(self) -> int:
        """Prompts whose gradient is finite."""
        return self.moments["grad_norm"].n

    @property
    def ranked_by(self) -> str:
        """The statistic whose mean is the score."""
        return score_statistic([name for name, moments in self.moments.items() if moments.n])

    def add(self, rows: pa.Table) -> None:
        """Take in norms."""
        self.n_rows += rows.num_rows
        for found in finite_values(rows, self.nodes):
            self.moments[found.statistic].add(found.values, found.templates)
            if found.statistic != SIGNED:
                histogram = self.histograms.setdefault(found.statistic, LogHistogram(len(found.values)))
                histogram.add(found.values)

    def coherence(self) -> Float[np.ndarray, "2 columns"]:
        """Signal and noise of parts, then nodes; NaN for a part that no batch of two prompts or more speaks of."""
        with np.errstate(invalid="ignore", divide="ignore"):
            signal = np.where(self.pairs > 0, self.excess / self.pairs, np.nan)
            noise = self.squares / self.draws - signal
        return np.stack([np.concatenate([parts, self.nodes.sums(parts)]) for parts in (signal, noise)])


def summarise(shards: Iterable[ShardTables], components: Sequence[Component]) -> pa.Table:
    """Reduce `shards`, in their order, to a table with the schema `SUMMARY`.

    Args:
        shards: tables as the engine wrote them; each is read once and dropped.
        components: the parts, in the order of the values in the norms.

    Raises:
        ValueError: the shards do not fit the components (their number, an unknown name).
    """
    nodes = NodeMap.of(components)
    groups: dict[Key, _Group] = {}
    for shard in shards:
        for key in keys(shard.norms):
            groups.setdefault(key, _Group(nodes, len(components)))
            groups[key].add(rows_of(shard.norms, key))
    tables = [_table(key, group, components) for key, group in groups.items()]
    return pa.concat_tables(tables) if tables else SUMMARY.empty_table()


def reduce(out: str) -> pl.DataFrame:
    """Reduce what is committed in `out`; write summary, circuits and heat maps there and return the summary.

    Raises:
        BadInput: nothing is committed in `out`.
    """
    store = Store(out)
    if not committed_ids(store):
        raise BadInput(
            f"nothing is committed in {store.location!r}, so there is nothing to reduce: run the study first"
        )
    components = read_components(store)
    table = summarise(shard_tables(store), components)
    store.write(SUMMARY_FILE, encoded(table))
    summary = cast(pl.DataFrame, pl.from_arrow(table))
    cfg = Config.of(components, runs_in_parallel(store))
    for name, content in (circuit_files(summary, cfg) | draw_heatmaps(summary)).items():
        store.write(name, content)
    return summary


def _table(key: Key, group: _Group, components: Sequence[Component]) -> pa.Table:
    columns = [*components, *group.nodes.nodes]
    levels = np.array(["part"] * len(components) + ["node"] * len(group.nodes.nodes))
    numbers = _numbers(group, len(columns))
    names = ("task", "wrong_answer", "level", "component", "node", "layer", "head", "part")
    described = [
        (*key, level, c.name, c.node, c.layer, c.head, c.part) for level, c in zip(levels, columns, strict=True)
    ]
    table: dict[str, Any] = dict(zip(names, zip(*described, strict=True), strict=True))
    counts = {
        "n": group.n,
        "n_centered": group.moments["centered_grad_norm"].n,
        "n_excluded": group.n_rows - group.n,
        "n_templates": group.moments["grad_norm"].n_templates,
    }
    table |= {name: [count] * len(columns) for name, count in counts.items()}
    table |= {name: pa.array(values, from_pandas=True) for name, values in numbers.items()}
    table |= _ranks(group, numbers["score"], components)
    return pa.table(table, schema=SUMMARY)


def _ranks(
    group: _Group, scores: Float[np.ndarray, " columns"], components: Sequence[Component]
) -> dict[str, list[int | None]]:
    moments = group.moments[group.ranked_by]
    replicas = moments.resampled_means(N_REPLICAS, seed=0) if moments.n else None
    found: dict[str, list[int | None]] = {"rank": [], "rank_ci_low": [], "rank_ci_high": []}
    for start, level in ((0, components), (len(components), group.nodes.nodes)):
        columns = slice(start, start + len(level))
        low, high = rank_intervals(level, None if replicas is None else replicas[:, columns])
        for name, ranked in zip(found, (ranks(level, scores[columns]), low, high), strict=True):
            found[name] += ranked
    return found


def _numbers(group: _Group, n_columns: int) -> dict[str, Float[np.ndarray, " columns"]]:
    signal, noise = group.coherence()
    numbers = {name: np.full(n_columns, np.nan) for name in SUMMARY.names if SUMMARY.field(name).type == pa.float64()}
    numbers |= {"signal": signal, "noise": noise}
    computed = {name: moments.estimate() for name, moments in group.moments.items() if moments.n}
    for statistic, estimate in computed.items():
        if statistic == SIGNED:
            numbers["taylor_signed_mean"] = estimate.mean
        else:
            above = estimate._replace(ci_low=np.maximum(estimate.ci_low, 0.0))
            numbers |= {f"{statistic}_{name}": values for name, values in above._asdict().items()}
            histogram = group.histograms[statistic]
            numbers |= {f"{statistic}_{name}": histogram.quantile(level) for name, level in QUANTILES.items()}
    numbers["score"] = numbers[f"{group.ranked_by}_mean"]
    with np.errstate(invalid="ignore", divide="ignore"):
        numbers["cv"] = numbers[f"{group.ranked_by}_std"] / numbers["score"]
    return numbers
