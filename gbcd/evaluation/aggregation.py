"""What aggregation buys: how well a score does when it is the mean over few prompts, and over more.

The prompts of a study are cut into blocks of n, which are random draws because stored prompts are shuffled. Each block
gives its own scores, and these are held against the measured effects of resampling. The mean over blocks says what n
prompts are worth, the standard deviation how much luck is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import Key, finite_values, keys, rows_of
from gbcd.component import Component
from gbcd.engine.tables import ShardTables
from gbcd.evaluation.agreement import auroc, spearman

#: Prompts in a block.
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

#: Prompts that blocks are cut from, so that memory is bounded, and blocks of a size at most.
MAX_PROMPTS, MAX_BLOCKS = 4000, 50

PerPrompt = dict[Key, dict[str, Float[np.ndarray, "columns prompts"]]]


def first_prompts(shards: Iterable[ShardTables], components: Sequence[Component], columns: Sequence[str]) -> PerPrompt:
    """Values of the parts or nodes `columns` on the first `MAX_PROMPTS` prompts of each task and wrong answer."""
    nodes = NodeMap.of(components)
    names = [part.name for part in components] + [node.name for node in nodes.nodes]
    chosen = [names.index(column) for column in columns]
    pieces: dict[Key, dict[str, list[np.ndarray]]] = {}
    for shard in shards:
        for key in keys(shard.norms):
            for name, values, _ in finite_values(rows_of(shard.norms, key), nodes):
                held = pieces.setdefault(key, {}).setdefault(name, [])
                if sum(piece.shape[1] for piece in held) < MAX_PROMPTS:
                    held.append(values[:, chosen].T)
    return {
        key: {name: np.concatenate(held, axis=1)[:, :MAX_PROMPTS] for name, held in group.items()}
        for key, group in pieces.items()
    }


def aggregation_rows(
    values: dict[str, Float[np.ndarray, "columns prompts"]],
    effects: Float[np.ndarray, " columns"],
    members: Bool[np.ndarray, " columns"],
) -> Iterator[dict[str, Any]]:
    """Rows of the aggregation table for one task and wrong answer: `method, n, n_blocks` and the figures."""
    for method, table in values.items():
        for size in SIZES:
            n_blocks = min(table.shape[1] // size, MAX_BLOCKS)
            if not n_blocks:
                break
            blocks = table[:, : n_blocks * size].reshape(len(table), n_blocks, size).mean(axis=2).T
            scores = np.abs(blocks)
            figures = {
                "auroc": auroc(scores, np.broadcast_to(members, scores.shape)),
                "spearman": spearman(scores, np.broadcast_to(effects, scores.shape)),
            }
            row: dict[str, Any] = {"method": method, "n": size, "n_blocks": n_blocks}
            for name, found in figures.items():
                row |= {f"{name}_mean": float(found.mean()), f"{name}_std": float(found.std())}
            yield row
