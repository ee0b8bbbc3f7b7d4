"""Which edges make a circuit, by their attributions: the largest, or those that are reached from the logits.

Both leave out edges that a condition rules out, and then dead ends: edges that no path from the input to the logits
passes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from gbcd.analysis.circuits import INPUT, LOGITS

Method = Literal["top", "greedy"]
"""`top`: the largest edges of all. `greedy`: the largest edge into what is already inside, from the logits on (Hanna et
al. 2024, arXiv 2403.17806, section 3)."""

Condition = Literal["none", "interval", "sign"]
"""`interval`: the 95 % interval leaves zero out. `sign`: at least `MIN_AGREEMENT` of the prompts agree on the sign."""

MIN_AGREEMENT = 0.9


class Ends(NamedTuple):
    """The nodes that each edge joins, as numbers."""

    sources: Int[np.ndarray, " edges"]
    targets: Int[np.ndarray, " edges"]

    @property
    def no_nodes(self) -> Bool[np.ndarray, " nodes"]:
        """The empty set of nodes."""
        return np.zeros(2 + max(self.sources.max(initial=0), self.targets.max(initial=0)), dtype=bool)


_INPUT, _LOGITS = 0, 1


def select(edges: pl.DataFrame, n: int, method: Method = "top", condition: Condition = "none") -> pl.DataFrame:
    """The edges of a circuit.

    Args:
        edges: rows of `edges.parquet` of one task and wrong answer, in their order.
        n: how many, before dead ends are left out.
        method: how they are found.
        condition: what every one of them must meet.

    Returns:
        Rows of `edges`, in their order.
    """
    allowed = edges.filter(pl.col("mean") != 0, _meets(condition))
    ends, sizes = numbered(allowed), allowed["mean"].abs().to_numpy()
    order = grown(ends, sizes) if method == "greedy" else np.argsort(-sizes, kind="stable")
    return allowed[without_dead_ends(ends, order[:n])]


def numbered(edges: pl.DataFrame) -> Ends:
    """The ends of edges; a target's node is its name without `<q>`, `<k>` or `<v>`."""
    sources, targets = edges["source"], edges["target"].str.split("<").list.first()
    names = pl.concat([pl.Series([INPUT, LOGITS]), sources, targets]).unique(maintain_order=True)
    numbers = {name: number for number, name in enumerate(names)}
    return Ends(*(column.replace_strict(numbers, return_dtype=pl.Int64).to_numpy() for column in (sources, targets)))


def without_dead_ends(ends: Ends, chosen: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " kept"]:
    """Those of the chosen edges that lie on a path from the input to the logits, in canonical order."""
    chosen = np.sort(chosen)
    sources, targets = ends.sources[chosen], ends.targets[chosen]
    # edges into one node stand together, behind those into nodes before it
    into = np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(targets)) + 1) if len(chosen) else []
    reached, reaching = ends.no_nodes, ends.no_nodes
    reached[_INPUT] = reaching[_LOGITS] = True
    for edges in into:
        reached[targets[edges[0]]] = reached[sources[edges]].any()
    for edges in reversed(into):
        reaching[sources[edges]] |= reached[sources[edges]] & reaching[targets[edges[0]]]
    return chosen[reached[sources] & reaching[targets]]


def grown(ends: Ends, sizes: Float[np.ndarray, " edges"]) -> Int[np.ndarray, " chosen"]:
    """Edges of a size in the order in which `greedy` chooses them, until nothing more can be reached."""
    inside, node, waiting, chosen = ends.no_nodes, _LOGITS, np.zeros(0, dtype=np.int64), list[np.ndarray]()
    while True:
        inside[node] = True
        waiting = np.concatenate([waiting, np.flatnonzero((ends.targets == node) & (sizes > 0))])
        outside = waiting[~inside[ends.sources[waiting]]]
        if not len(outside):
            return np.concatenate([*chosen, _by_size(waiting, sizes)])
        entry = outside[np.argmax(sizes[outside])]
        is_before = sizes[waiting] > sizes[entry]
        chosen += [_by_size(waiting[is_before], sizes), entry[None]]
        waiting, node = waiting[~is_before & (waiting != entry)], ends.sources[entry]


def _by_size(edges: Int[np.ndarray, " some"], sizes: Float[np.ndarray, " edges"]) -> Int[np.ndarray, " some"]:
    return edges[np.argsort(-sizes[edges], kind="stable")]


def _meets(condition: Condition) -> pl.Expr:
    if condition == "interval":
        return (pl.col("ci_low") > 0) | (pl.col("ci_high") < 0)
    return pl.col("sign_agreement") >= MIN_AGREEMENT if condition == "sign" else pl.lit(True)
