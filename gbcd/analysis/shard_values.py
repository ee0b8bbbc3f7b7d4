"""What a shard's norms say of parts and nodes: the numbers of one task and wrong answer, unfolded and checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float32, Int

from gbcd.analysis.nodes import NodeMap
from gbcd.engine.tables import ATTRIBUTIONS, NORMS, STATISTICS

#: The centred norm of the part through which a node writes; of a part, its own.
WRITING = "writing_norm"

#: Statistics that the summary describes; attributions by their sizes, and with `SIGNED` as they are.
SUMMARISED = (*NORMS, WRITING, *ATTRIBUTIONS)

#: Ends the name of an attribution that keeps its sign.
SIGNED = "_signed"

#: Prompts that are unfolded to float64 at a time.
CHUNK = 512


class Key(NamedTuple):
    """Of one group of rows."""

    task: str
    wrong_answer: str


class Values(NamedTuple):
    """One statistic of some prompts of one group.

    Attributes:
        statistic: one of `SUMMARISED`, or an attribution with its sign.
        values: of each prompt, and each part and then each node; finite.
        rows: where these prompts stand among the rows.
    """

    statistic: str
    values: Float[np.ndarray, "prompts columns"]
    rows: Int[np.ndarray, " prompts"]


def keys(table: pa.Table) -> list[Key]:
    """The groups that a table of a shard speaks of, in order."""
    pairs = zip(table["task"].to_pylist(), table["wrong_answer"].to_pylist(), strict=True)
    return [Key(*pair) for pair in dict.fromkeys(pairs)]


def rows_of(table: pa.Table, key: Key) -> pa.Table:
    """The rows of one group."""
    return table.filter((pc.field("task") == key.task) & (pc.field("wrong_answer") == key.wrong_answer))


def finite_values(rows: pa.Table, nodes: NodeMap) -> Iterator[Values]:
    """Unfold values of one group, some prompts at a time, without those that have none or one that is not finite.

    Norms of a node are the root of the summed squares of its parts; its attributions those of the part that writes.

    Raises:
        ValueError: the lists are not as long as there are components.
    """
    for statistic in STATISTICS:
        present = np.flatnonzero(rows[statistic].is_valid().to_numpy())
        table = _matrix(statistic, rows[statistic].drop_null(), len(nodes.by_node))
        finite = np.flatnonzero(np.isfinite(table).all(axis=1))
        for start in range(0, len(finite), CHUNK):
            chosen = finite[start : start + CHUNK]
            for name, values in _columns(statistic, table[chosen].astype(np.float64), nodes).items():
                yield Values(name, values, present[chosen])


def _matrix(name: str, lists: pa.ChunkedArray, n_parts: int) -> Float32[np.ndarray, "prompts parts"]:
    flat = lists.combine_chunks().flatten().to_numpy()
    if len(flat) != len(lists) * n_parts:
        raise ValueError(f"{name} holds {len(flat)} values for {len(lists)} prompts and {n_parts} components")
    return flat.reshape(len(lists), n_parts)


def _columns(
    statistic: str, parts: Float[np.ndarray, "prompts parts"], nodes: NodeMap
) -> dict[str, Float[np.ndarray, "prompts columns"]]:
    written = np.concatenate([parts, parts[:, nodes.writers]], axis=1)
    if statistic in ATTRIBUTIONS:
        return {statistic: np.abs(written), statistic + SIGNED: written}
    norms = {statistic: np.concatenate([parts, nodes.norms(parts.T).T], axis=1)}
    return norms | {WRITING: written} if statistic == "centered_grad_norm" else norms
