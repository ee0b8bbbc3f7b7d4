"""Which edges make a circuit, by their attributions: the largest, or those that are reached from the logits.

Both leave out edges that a condition rules out, and then dead ends: edges that no path from the input to the logits
passes.
"""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from gbcd.analysis.circuits import INPUT, LOGITS

Method = Literal["top", "greedy"]
"""`top`: the largest edges of all. `greedy`: the largest edge into what is already inside, from the logits on (Hanna et
al. 2024, arXiv 2403.17806, section 3)."""

Condition = Literal["none", "interval", "sign"]
"""`interval`: the 95 % interval leaves zero out. `sign`: at least `MIN_AGREEMENT` of the prompts agree on the sign."""

MIN_AGREEMENT = 0.9


def select(edges: pl.DataFrame, n: int, method: Method = "top", condition: Condition = "interval") -> pl.DataFrame:
    """The edges of a circuit.

    Args:
        edges: rows of `edges.parquet` of one task and wrong answer, in their order.
        n: how many, before dead ends are left out.
        method: how they are found.
        condition: what every one of them must meet.

    Returns:
        Rows of `edges`, in their order.
    """
    allowed = edges.with_row_index("_row").filter(pl.col("mean") != 0, _meets(condition))
    if method == "top":
        chosen = allowed.sort(pl.col("mean").abs(), descending=True, maintain_order=True).head(n)["_row"]
    else:
        chosen = allowed["_row"].gather(_greedy(allowed, n))
    return without_dead_ends(edges[chosen.sort()])


def without_dead_ends(edges: pl.DataFrame) -> pl.DataFrame:
    """The edges that lie on a path from the input to the logits; `edges` are in canonical order."""
    sources, targets = edges["source"].to_list(), _nodes(edges).to_list()
    reached, from_input = {INPUT}, [False] * len(sources)
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if source in reached:
            from_input[index] = True
            reached.add(target)
    reaching, kept = {LOGITS}, [False] * len(sources)
    for index in reversed(range(len(sources))):
        if from_input[index] and targets[index] in reaching:
            kept[index] = True
            reaching.add(sources[index])
    return edges.filter(pl.Series(kept, dtype=pl.Boolean))


def _meets(condition: Condition) -> pl.Expr:
    if condition == "interval":
        return (pl.col("ci_low") > 0) | (pl.col("ci_high") < 0)
    return pl.col("sign_agreement") >= MIN_AGREEMENT if condition == "sign" else pl.lit(True)


def _nodes(edges: pl.DataFrame) -> pl.Series:
    """The node that each edge leads to: its target without `<q>`, `<k>` or `<v>`."""
    return edges["target"].str.split("<").list.first()


def _greedy(edges: pl.DataFrame, n: int) -> Int[np.ndarray, " chosen"]:
    """Places of the chosen edges. Those into a node wait in order of size, and its largest one competes."""
    codes = {name: code for code, name in enumerate(pl.concat([edges["source"], _nodes(edges)]).unique())}
    source, target = (column.replace_strict(codes).to_numpy() for column in (edges["source"], _nodes(edges)))
    sizes: Float[np.ndarray, " edges"] = edges["mean"].abs().to_numpy()
    order = np.lexsort((-sizes, target))
    starts = np.searchsorted(target[order], np.arange(len(codes) + 1))
    inside, waiting, chosen = {codes.get(LOGITS, -1)}, list[tuple[float, int]](), list[int]()

    def offer(place: int, node: int) -> None:
        if place < starts[node + 1]:
            heapq.heappush(waiting, (-float(sizes[order[place]]), place))

    if LOGITS in codes:
        offer(int(starts[codes[LOGITS]]), codes[LOGITS])
    while waiting and len(chosen) < n:
        place = heapq.heappop(waiting)[1]
        edge = int(order[place])
        chosen.append(edge)
        offer(place + 1, int(target[edge]))
        if (found := int(source[edge])) not in inside:
            inside.add(found)
            offer(int(starts[found]), found)
    return np.array(chosen, dtype=np.int64)
