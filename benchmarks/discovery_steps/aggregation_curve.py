"""How soon do ranks settle? Scores that are means over few prompts and over more, drawn without replacement.

Each draw gives a ranking, held against the measured effects and against the ranking by all prompts of the pool. The
mean over draws says what n prompts are worth, the standard deviation how much luck is in them. Means that norms are
centred by come from the whole pool whatever n is. Draws of half the pool and more overlap with it, which flatters
their agreement with the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gbcd.evaluation.agreement import spearman

SIZES = (1, 4, 16, 64, 256)
N_DRAWS = 40
_FIGURES = ("truth", "truth_sd", "whole", "whole_sd")


def curve(
    values: Float[np.ndarray, "prompts nodes"], effects: Float[np.ndarray, " nodes"], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Rows `n, truth, truth_sd, whole, whole_sd`: Spearman with effects and with the whole pool, by prompts."""
    n_prompts = len(values)
    whole = values.mean(axis=0)
    for size in [*(size for size in SIZES if size < n_prompts), n_prompts]:
        n_draws = N_DRAWS if size < n_prompts else 1
        scores = np.stack([values[rng.permutation(n_prompts)[:size]].mean(axis=0) for _ in range(n_draws)])
        row: dict[str, Any] = {"n": "all" if size == n_prompts else size, "n_prompts": size}
        for name, other in (("truth", effects), ("whole", whole)):
            found = spearman(scores, np.broadcast_to(other, scores.shape))
            row |= {name: float(found.mean()), f"{name}_sd": float(found.std())}
        yield row


def mean_curves(rows: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Means over tasks and models of a group, and the range over its models of the agreement with the truth."""
    found: list[dict[str, Any]] = []
    for group, models in groups.items():
        cells: defaultdict[tuple[str, Any], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["model"] in models:
                cells[row["method"], row["n"]].append(row)
        for (method, n), some in cells.items():
            by_model = [np.mean([row["truth"] for row in some if row["model"] == model]) for model in models]
            figures = {name: round(float(np.mean([row[name] for row in some])), 4) for name in _FIGURES}
            spread = [round(float(bound), 4) for bound in (min(by_model), max(by_model))]
            found.append({"group": group, "method": method, "n": n, **figures, "truth_range": spread})
    return found


def enough(curves: Sequence[dict[str, Any]], margin: float = 0.01) -> int | str:
    """The fewest prompts of one group's curve of one method whose mean agreement is within `margin` of all prompts'."""
    best = curves[-1]["truth"]
    return next(row["n"] for row in curves if row["truth"] >= best - margin)
