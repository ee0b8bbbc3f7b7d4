"""From parts to nodes: what the numbers of a head's q, k, v and o say about the head.

Squared norms add, since the gradient of a node is the gradients of its parts side by side:
`||G_node||^2 = sum of ||G_part||^2`.

Attributions do not add. A node's attribution is the first-order effect of replacing what it writes, and its parts form
a chain: scaling `v` by `1 - e` and scaling `o` by `1 - e` change the head's output in one and the same way, so
their sum counts that change twice, and `q` and `k` add the effect of flatter attention. So the attribution of a head is
that of its `o`, of an MLP that of its `out` or `down`, and of a node with one part that part's. A group of heads that
share keys and values hands values to them, so its attribution is that of its `v`. What it writes reaches the residual
stream through its heads, whose attributions have it already: groups are measured as nodes, and only heads and MLPs are
ranked, evaluated and in circuits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float32, Int

from gbcd.component import Component
from gbcd.engine.tables import ATTRIBUTIONS, NORMS, STATISTICS

#: Parts through which a node writes: to the residual stream, or in the case of a group to its heads.
WRITERS = ("o", "out", "down")
GROUP_WRITERS = ("v",)


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


@dataclass(frozen=True)
class NodeMap:
    """Which parts make up which node.

    Attributes:
        nodes: one per node, in the order of their first parts; `name` and `node` are the node's name, `part` is `head`,
            `group`, `mlp` or, for a node with one part, that part's, and `n_params` the sum over parts.
        by_node: indices of the parts, sorted by node.
        starts: where in `by_node` each node begins.
        writers: index of the part through which each node writes.
    """

    nodes: tuple[Component, ...]
    by_node: Int[np.ndarray, " parts"]
    starts: Int[np.ndarray, " nodes"]
    writers: Int[np.ndarray, " nodes"]

    @staticmethod
    def of(components: Sequence[Component]) -> NodeMap:
        """Group `components`, wherever in the list the parts of a node lie."""
        members: dict[str, list[int]] = {}
        for index, component in enumerate(components):
            members.setdefault(component.node, []).append(index)
        sizes = [len(indices) for indices in members.values()]
        return NodeMap(
            nodes=tuple(_node([components[index] for index in indices]) for indices in members.values()),
            by_node=np.array([index for indices in members.values() for index in indices], dtype=np.int64),
            starts=np.cumsum([0, *sizes[:-1]], dtype=np.int64),
            writers=np.array([_writer(components, indices) for indices in members.values()], dtype=np.int64),
        )

    def norms(self, values: Float[np.ndarray, " parts *rest"]) -> Float[np.ndarray, " nodes *rest"]:
        """Norms of nodes from norms of parts."""
        return np.sqrt(np.add.reduceat(np.square(values)[self.by_node], self.starts, axis=0))


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


def _node(parts: list[Component]) -> Component:
    first = parts[0]
    part = first.part if len(parts) == 1 else "group" if first.is_group else "mlp" if first.head is None else "head"
    return Component(first.node, first.node, first.layer, first.head, part, sum(part.n_params for part in parts))


def _writer(components: Sequence[Component], indices: list[int]) -> int:
    writers = GROUP_WRITERS if components[indices[0]].is_group else WRITERS
    writing = [index for index in indices if len(indices) == 1 or components[index].part in writers]
    if len(writing) != 1:
        raise ValueError(f"node {components[indices[0]].node} has {len(writing)} parts that write; expected 1")
    return writing[0]
