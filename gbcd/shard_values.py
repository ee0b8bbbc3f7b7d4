"""What a shard's tables say of parts and nodes: the numbers of one task and wrong answer, unfolded and checked.

Both the reduction and the evaluation read shards through here, so that they agree on which prompts count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float32

from gbcd.nodes import NodeMap
from gbcd.tables import STATISTICS

#: Prompts that are unfolded to float64 at a time.
CHUNK = 512

#: The signed Taylor score, beside `taylor`, its absolute value.
SIGNED = "taylor_signed"


class Key(NamedTuple):
    """Of one group of rows."""

    task: str
    wrong_answer: str


class Values(NamedTuple):
    """Some prompts of one group.

    Attributes:
        statistics: names of what was computed, `taylor` in absolute value and `taylor_signed` included.
        values: for each of them, each part and then each node, and each prompt; finite.
        templates: of the prompts.
    """

    statistics: tuple[str, ...]
    values: Float[np.ndarray, "statistics columns prompts"]
    templates: list[str]


def keys(table: pa.Table) -> list[Key]:
    """The groups that a table of a shard speaks of, in order."""
    pairs = zip(table["task"].to_pylist(), table["wrong_answer"].to_pylist(), strict=True)
    return [Key(*pair) for pair in dict.fromkeys(pairs)]


def rows_of(table: pa.Table, key: Key) -> pa.Table:
    """The rows of one group."""
    return table.filter((pc.field("task") == key.task) & (pc.field("wrong_answer") == key.wrong_answer))


def finite_values(rows: pa.Table, nodes: NodeMap) -> Iterator[Values]:
    """Unfold norms of one group, some prompts at a time, leaving out those with a value that is not finite.

    Raises:
        ValueError: the lists are not as long as there are components.
    """
    usable = rows.filter(rows["grad_norm"].is_valid())
    if not usable.num_rows:
        return
    computed = [name for name in STATISTICS if usable[name].null_count < usable.num_rows]
    tables = {name: _matrix(name, usable[name], len(nodes.by_node)) for name in computed}
    templates = usable["template"].to_pylist()
    kept = np.flatnonzero(np.logical_and.reduce([np.isfinite(table).all(axis=1) for table in tables.values()]))
    for start in range(0, len(kept), CHUNK):
        chosen = kept[start : start + CHUNK]
        columns = _columns({name: table[chosen].T.astype(np.float64) for name, table in tables.items()}, nodes)
        yield Values(tuple(columns), np.stack(list(columns.values())), [templates[index] for index in chosen])


def _matrix(name: str, lists: pa.ChunkedArray, n_parts: int) -> Float32[np.ndarray, "prompts parts"]:
    flat = lists.combine_chunks().flatten().to_numpy()
    if len(flat) != len(lists) * n_parts:
        raise ValueError(f"{name} holds {len(flat)} values for {len(lists)} prompts and {n_parts} components")
    return flat.reshape(len(lists), n_parts)


def _columns(
    values: dict[str, Float[np.ndarray, "parts prompts"]], nodes: NodeMap
) -> dict[str, Float[np.ndarray, "columns prompts"]]:
    columns = {
        name: np.concatenate([parts, parts[nodes.writers] if name == "taylor" else nodes.norms(parts)])
        for name, parts in values.items()
    }
    if "taylor" in columns:
        columns |= {"taylor": np.abs(columns["taylor"]), SIGNED: columns["taylor"]}
    return columns
