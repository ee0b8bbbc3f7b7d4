"""Bootstrap replicas: what scores and effects would have been on other draws of prompts.

Every table of replicas has the estimate itself in its first row and a replica in each further row. A replica weights
each prompt by a draw from Poisson(1) (Hanley & MacGibbon 2006), which for many prompts is the bootstrap and, unlike it,
can be summed shard by shard in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import SIGNED, Key, finite_values, keys, rows_of
from gbcd.component import Component
from gbcd.engine.tables import ShardTables

N_REPLICAS = 200


def poisson_weights(n_prompts: int, rng: np.random.Generator) -> Float[np.ndarray, "replicas prompts"]:
    """Ones, then a replica's weights in each further row; only their ratios count."""
    weights = rng.poisson(1.0, size=(N_REPLICAS + 1, n_prompts)).astype(np.float64)
    weights[0] = 1.0
    return weights


def means(
    weights: Float[np.ndarray, "replicas prompts"], values: Float[np.ndarray, " prompts *rest"]
) -> Float[np.ndarray, " replicas *rest"]:
    """Weighted means over prompts; a replica that drew no prompt at all has the estimate's."""
    weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, 1.0)
    return np.tensordot(weights / weights.sum(axis=1, keepdims=True), values, axes=1)


def interval(
    replicas: Float[np.ndarray, " replicas"], lowest: float = -np.inf, highest: float = np.inf
) -> tuple[float, float]:
    """Bounds of the 95 % interval, within what is possible; NaN where there is no value.

    They are the estimate and 1.96 standard deviations of the replicas. Percentiles of the replicas will not do: a
    replica has the noise of the sample and then its own, noise spoils rank figures, so replicas lie too low.
    """
    drawn = replicas[1:][np.isfinite(replicas[1:])]
    if not len(drawn) or not np.isfinite(replicas[0]):
        return float("nan"), float("nan")
    half = 1.96 * drawn.std()
    return float(max(lowest, replicas[0] - half)), float(min(highest, replicas[0] + half))


def score_replicas(
    shards: Iterable[ShardTables], components: Sequence[Component], columns: Sequence[str], seed: int
) -> dict[Key, dict[str, Float[np.ndarray, "replicas columns"]]]:
    """Means over all prompts of a study, with replicas, for each task, wrong answer and statistic.

    Args:
        shards: committed tables, in order.
        components: the parts.
        columns: the parts or nodes that are wanted.
        seed: fixes the replicas.

    Returns:
        `grad_norm`, `centered_grad_norm` and `writing_norm` (if computed), `taylor` (mean of absolute values) and
        `taylor_signed`
        (absolute value of the mean).
    """
    nodes = NodeMap.of(components)
    names = [part.name for part in components] + [node.name for node in nodes.nodes]
    chosen = [names.index(column) for column in columns]
    rng = np.random.default_rng(seed)
    sums: dict[Key, dict[str, np.ndarray]] = {}
    totals: dict[Key, dict[str, np.ndarray]] = {}
    for shard in shards:
        for key in keys(shard.norms):
            rows = rows_of(shard.norms, key)
            weights = poisson_weights(rows.num_rows, rng)
            group, total = sums.setdefault(key, {}), totals.setdefault(key, {})
            for name, values, where in finite_values(rows, nodes):
                group[name] = group.get(name, 0.0) + weights[:, where] @ values[:, chosen]
                total[name] = total.get(name, 0.0) + weights[:, where].sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # no prompt may have a value, or a replica may have drawn none that has
        found = {key: {name: group[name] / totals[key][name] for name in group} for key, group in sums.items()}
    return {key: {name: _size(name, mean) for name, mean in group.items()} for key, group in found.items()}


def _size(statistic: str, mean: Float[np.ndarray, "replicas columns"]) -> Float[np.ndarray, "replicas columns"]:
    return np.abs(mean) if statistic.endswith(SIGNED) else mean
