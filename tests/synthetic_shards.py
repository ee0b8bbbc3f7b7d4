"""Shards with values by hand, in the form in which the engine writes them, for what reads shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gbcd.analysis.collect import Collected, part_of, ranked_nodes
from gbcd.analysis.nodes import NodeMap
from gbcd.component import Component
from gbcd.engine.tables import ATTRIBUTIONS, NORMS, STATISTICS, ShardTables

COMPONENTS = [
    *(Component(f"a0.h{head}.{part}", f"a0.h{head}", 0, head, part, 8) for head in range(2) for part in "qkvo"),
    *(Component(f"m0.{part}", "m0", 0, None, part, 16) for part in ("in", "out")),
    Component("a0.norm", "a0.norm", 0, None, "norm", 4),
]
WIDTH = len(COMPONENTS)


def drawn(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Norms and attributions of `n` prompts, [prompts, components] by statistic."""
    rng = np.random.default_rng(seed)
    norms = {name: np.abs(rng.normal(size=(n, WIDTH))) for name in NORMS}
    values = norms | {name: rng.normal(size=(n, WIDTH)) for name in ATTRIBUTIONS}
    return {name: table.astype(np.float32).astype(np.float64) for name, table in values.items()}


def _list(width: int) -> pa.DataType:
    return pa.list_(pa.float32(), width)


def shard(
    values: dict[str, np.ndarray],
    templates: Sequence[str],
    task: str = "ioi",
    wrong: str = "foil",
    first: int = 0,
    moments: pa.Table | None = None,
    **columns: list[object],
) -> ShardTables:
    """A shard of the statistics that `values` has; a row of NaN is a null. `first` numbers the prompts, `columns` are
    further columns of the table of prompts."""
    n, width = len(templates), next(iter(values.values())).shape[1]
    keys = {
        "prompt_id": [f"{task}/{first + index:06d}" for index in range(n)],
        "task": [task] * n,
        "template": list(templates),
        "wrong_answer": [wrong] * n,
    }
    nothing = np.full((n, width), np.nan)
    lists = {
        name: pa.array([None if np.isnan(row).all() else row for row in values.get(name, nothing)], _list(width))
        for name in STATISTICS
    }
    prompts = pa.table({**keys, "prompt": [f"text {index}" for index in range(n)], "status": ["ok"] * n, **columns})
    return ShardTables(prompts, pa.table({**keys, **lists}), moments)


def moments(values: dict[str, np.ndarray]) -> pa.Table:
    """Sums over prompts, `[prompts, values]`, of `edges` or of the neurons of an MLP, as shards keep them."""
    keys = {"task": "ioi", "wrong_answer": "foil"}
    sums = {name: {"n": len(x), "sum": x.sum(0), "sum_sq": (x**2).sum(0), "n_positive": (x > 0).sum(0)}
            for name, x in values.items()}  # fmt: skip
    return pa.Table.from_pylist([{**keys, "of": name, **row} for name, row in sums.items()])


def collected(shards: Sequence[ShardTables], components: Sequence[Component] = COMPONENTS) -> Collected:
    """What the pass over these shards gives."""
    nodes = NodeMap.of(components)
    found = Collected(len(ranked_nodes(nodes)))
    for one in shards:
        found.add(part_of(one, nodes))
    return found
