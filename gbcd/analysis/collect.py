"""One pass over the shards: sums that merge, and samples of bounded size.

    shard -> Collected (sums of every statistic, a sample, the extremes) -> those of all shards

Shards are read and summed in threads, and they are merged in the order of the plan, so the result depends on the
shards alone. Memory depends on the model and on the number of tasks and wrong answers, never on the number of prompts.
Per prompt, parts become nodes first (`nodes.py`) and are averaged afterwards (`intervals.py`): the norm of a node is
averaged, not the norms of its parts. A prompt whose gradient is not finite is in no sum.

The sample holds the prompts whose identifiers have the smallest hashes, which is a random draw that is the same for
any cut into shards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float32, Int

from gbcd.analysis.intervals import ClusteredMoments, Clusters
from gbcd.analysis.nodes import SIGNED, Key, NodeMap, finite_values, keys, rows_of
from gbcd.analysis.ranking import DEFAULT_SCORES
from gbcd.component import Component
from gbcd.engine.tables import ATTRIBUTIONS, ShardTables
from gbcd.run.results import map_shards
from gbcd.run.store import Store

#: Prompts of each task and wrong answer whose values are kept one by one, and values of a statistic, at most.
SAMPLE, MAX_VALUES = 2_000, 1_000_000

#: Prompts that are kept at either end, by the norm of their values over all heads and MLPs.
EXTREMES = 6

#: Columns of the table of prompts whose values are counted, where it has them.
COUNTED = ("status", "correct", "above_wrong", "reference")

_HASH = "_hash"


@dataclass
class Moments:
    """Sums by statistic, of parts and then nodes, or of edges and of neurons by the name of their MLP.

    Attributes:
        n_rows: prompts, with and without values.
        clusters: numbers of templates in the sums.
        by_statistic: the sums.
    """

    n_rows: int = 0
    clusters: Clusters = field(default_factory=Clusters)
    by_statistic: dict[str, ClusteredMoments] = field(default_factory=dict[str, ClusteredMoments])

    def add(self, other: Moments) -> None:
        """Take in those of another shard."""
        self.n_rows += other.n_rows
        numbers = self.clusters.numbers(list(other.clusters.names))
        for name, moments in other.by_statistic.items():
            self.by_statistic.setdefault(name, ClusteredMoments()).add(moments, numbers[: len(moments.sizes)])

    @property
    def counts(self) -> dict[str, int]:
        """Prompts that have each statistic."""
        return {name: moments.n for name, moments in self.by_statistic.items()}


class Collected:
    """What some shards have said.

    Attributes:
        moments: of parts and nodes, by task and wrong answer.
        many: the same of edges and neurons, where the study has them.
        counts: `task, wrong_answer, column, value, n`, of the columns `COUNTED`.
        rows: of the table of prompts with `_hash` and, by statistic, the values of heads and MLPs.
        ends: such rows without values, with `statistic`, `end` (`most`, `least`) and `response`.
    """

    def __init__(self, n_nodes: int, prompts: pl.DataFrame | None = None) -> None:
        """Of no shard, or of the prompts of one; `n_nodes` heads and MLPs are in a sample."""
        self.moments: dict[Key, Moments] = {}
        self.many: dict[Key, Moments] = {}
        self.counts = _counts(prompts)
        self.rows: dict[Key, pl.DataFrame] = {}
        self.ends: dict[Key, pl.DataFrame] = {}
        self._size = min(SAMPLE, max(1, MAX_VALUES // max(1, n_nodes)))

    def add(self, other: Collected) -> None:
        """Take in another shard."""
        for held, others in ((self.moments, other.moments), (self.many, other.many)):
            for key, moments in others.items():
                held.setdefault(key, Moments()).add(moments)
        for key, rows in other.rows.items():
            held = self.rows.get(key)
            if held is not None and held.height >= self._size:
                rows = rows.filter(pl.col(_HASH) < held[_HASH][self._size - 1])
            joined = rows if held is None else pl.concat([held, rows], how="diagonal")
            # sorted when it has grown to twice its size, so that rows are copied a few times and not once a shard
            self.rows[key] = joined if self._size <= joined.height < 2 * self._size else self._first(joined)
        for key, ends in other.ends.items():
            held = self.ends.get(key)
            self.ends[key] = ends if held is None else _ends(pl.concat([held, ends]))
        self.counts = (
            pl.concat([self.counts, other.counts]).group_by(*_COUNTS[:-1], maintain_order=True).agg(pl.col("n").sum())
        )

    @property
    def samples(self) -> dict[Key, pl.DataFrame]:
        """By task and wrong answer, in random order."""
        return {key: self._first(sample).drop(_HASH) for key, sample in self.rows.items()}

    @property
    def extremes(self) -> dict[Key, pl.DataFrame]:
        """By task and wrong answer, the largest and the smallest responses first."""
        return {key: _ends(found) for key, found in self.ends.items()}

    def _first(self, sample: pl.DataFrame) -> pl.DataFrame:
        return sample.sort(_HASH).head(self._size)


def ranked_nodes(nodes: NodeMap) -> list[int]:
    """Places of the heads and MLPs among the nodes."""
    return [index for index, node in enumerate(nodes.nodes) if node.is_circuit_part]


def collect(store: Store, components: list[Component]) -> Collected:
    """Read every committed shard once.

    Raises:
        ValueError: the shards do not fit the components.
        BadInput: a file is damaged or gone; says how to repair it.
    """
    nodes = NodeMap.of(components)
    collected = Collected(len(ranked_nodes(nodes)))
    for part in map_shards(store, lambda shard: part_of(shard, nodes)):
        collected.add(part)
    return collected


def part_of(shard: ShardTables, nodes: NodeMap) -> Collected:
    """What one shard says.

    Raises:
        ValueError: its lists are not as long as there are components.
    """
    prompts, ranked = cast(pl.DataFrame, pl.from_arrow(shard.prompts)), ranked_nodes(nodes)
    found, columns = Collected(len(ranked), prompts), np.array(ranked, dtype=np.int64) + len(nodes.by_node)
    for key in keys(shard.norms):
        rows = rows_of(shard.norms, key)
        found.moments[key], values = _moments(rows, nodes, columns)
        if values:
            described = pl.DataFrame({"prompt_id": rows["prompt_id"].to_pylist()}).join(
                prompts.filter(task=key.task, wrong_answer=key.wrong_answer), on="prompt_id", how="left"
            )
            found.rows[key], found.ends[key] = _sample(described, values), _extremes(described, values)
    if shard.moments is not None:
        found.many = {key: _prompt_moments(rows_of(shard.moments, key)) for key in keys(shard.moments)}
    return found


def _moments(
    rows: pa.Table, nodes: NodeMap, columns: Int[np.ndarray, " nodes"]
) -> tuple[Moments, dict[str, Float32[np.ndarray, "prompts nodes"]]]:
    """Sums of one group, and the values of `columns` by statistic, signed where they have signs; NaN where missing."""
    templates = rows["template"].combine_chunks().dictionary_encode()
    names, codes = templates.dictionary.to_pylist(), templates.indices.to_numpy()
    numbers = np.arange(len(names))
    moments, kept = Moments(n_rows=rows.num_rows), dict[str, np.ndarray]()
    moments.clusters.names = {name: number for number, name in enumerate(names)}
    for found in finite_values(rows, nodes):
        some = ClusteredMoments.of(found.values, codes[found.rows], len(names))
        moments.by_statistic.setdefault(found.statistic, ClusteredMoments()).add(some, numbers)
        if found.statistic not in ATTRIBUTIONS:  # these are kept with their signs
            name = found.statistic.removesuffix(SIGNED)
            if name not in kept:
                kept[name] = np.full((rows.num_rows, len(columns)), np.nan, dtype=np.float32)
            kept[name][found.rows] = found.values[:, columns]
    return moments, kept


def _sample(described: pl.DataFrame, values: dict[str, Float32[np.ndarray, "prompts nodes"]]) -> pl.DataFrame:
    hashes = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in described["prompt_id"]]
    has_any = np.any([np.isfinite(table).all(axis=1) for table in values.values()], axis=0)
    stored = [pl.Series(name, table) for name, table in values.items()]
    return described.with_columns(pl.Series(_HASH, hashes, dtype=pl.UInt64), *stored).filter(pl.Series(has_any))


def _extremes(described: pl.DataFrame, values: dict[str, Float32[np.ndarray, "prompts nodes"]]) -> pl.DataFrame:
    tables: list[pl.DataFrame] = []
    for name in DEFAULT_SCORES:
        if name in values:
            response = pl.Series(np.linalg.norm(values[name].astype(np.float64), axis=1), nan_to_null=True)
            rows = described.with_columns(statistic=pl.lit(name), response=response).drop_nulls("response")
            tables += [rows.with_columns(end=pl.lit(end)) for end in ("most", "least")]
    return _ends(pl.concat(tables))


def _ends(rows: pl.DataFrame) -> pl.DataFrame:
    """The extreme responses of each statistic; of equal ones, by identifier."""
    order = pl.when(pl.col("end") == "most").then(-pl.col("response")).otherwise(pl.col("response"))
    return (
        rows.sort("statistic", "end", order, "prompt_id")
        .group_by("statistic", "end", maintain_order=True)
        .head(EXTREMES)
    )


_COUNTS = ("task", "wrong_answer", "column", "value", "n")


def _counts(prompts: pl.DataFrame | None) -> pl.DataFrame:
    none = pl.DataFrame(schema={**dict.fromkeys(_COUNTS, pl.String), "n": pl.Int64})
    if prompts is None:
        return none
    counted = [
        prompts.group_by("task", "wrong_answer", name, maintain_order=True)
        .agg(n=pl.len().cast(pl.Int64))
        .select("task", "wrong_answer", pl.lit(name).alias("column"), pl.col(name).cast(pl.String).alias("value"), "n")
        for name in COUNTED
        if name in prompts.columns
    ]
    return pl.concat([none, *counted])


def _prompt_moments(rows: pa.Table) -> Moments:
    """Sums of edges and neurons; a shard does not tell templates apart here, so its prompts are one cluster."""
    moments = Moments()
    for row in range(rows.num_rows):
        n = rows["n"][row].as_py()
        if not n:
            continue
        total, squares, positive = (
            rows[name][row].values.to_numpy(zero_copy_only=False) for name in ("sum", "sum_sq", "n_positive")
        )
        part = ClusteredMoments(
            n=n,
            mean=total / n,
            m2=np.maximum(squares - np.square(total) / n, 0.0),
            n_positive=positive.astype(np.int64),
            sizes=np.array([n]),
            sums=total[None],
        )
        clusters = Clusters()
        clusters.numbers([""])
        moments.add(Moments(n, clusters, {rows["of"][row].as_py(): part}))
    return moments
