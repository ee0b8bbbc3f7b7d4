"""Tables that an evaluation writes beside the results: their files and columns."""

from __future__ import annotations

import polars as pl

from gbcd.component import file_name

EVALUATION_FILE, EFFECTS_FILE = "evaluation.parquet", "effects.parquet"
FAITHFULNESS_FILE, EDGE_FAITHFULNESS_FILE = "faithfulness.parquet", "edge_faithfulness.parquet"
EDGE_SCORES_FILE = "edge_scores.parquet"


def drops_file(task: str) -> str:
    """File of the effects on single prompts of a task."""
    return file_name("effects/effects", task, suffix="parquet")


_NAMES = {name: pl.String() for name in ("task", "wrong_answer", "method")}
_BOUNDS = {name: pl.Float64() for name in ("value", "ci_low", "ci_high")}

EVALUATION = pl.Schema(
    {
        **_NAMES,
        **{name: pl.String() for name in ("truth", "group", "figure")},
        **_BOUNDS,
        **{name: pl.Int64() for name in ("n_members", "n_components", "n_pairs")},
        "cost": pl.Float64(),
    }
)
"""One row per score, truth, group (`all`, `heads`, `groups`, `mlps`) and figure; `cost` in forward passes per prompt. A
figure that ends in `_difference` is the score's less that of the score that ranks the study's components."""

EFFECTS = pl.Schema(
    {
        **{name: pl.String() for name in ("task", "method", "component", "node", "part")},
        **{name: pl.Int64() for name in ("layer", "head")},
        **_BOUNDS,
        "gap": pl.Float64(),
        "weight": pl.Int64(),
        "n_pairs": pl.Int64(),
        "n_unpatched": pl.Int64(),
        "cost": pl.Float64(),
    }
)
"""One row per component and method: of an ablation or a signed baseline `value` is the mean drop in the metric (or its
estimate). `gap` is the mean metric on the prompts less that on their counterfactuals; `weight` for how many components
this one stands, where a sample is ablated; `cost` in forward passes over each pair, by blocks
and tokens that were computed, padding included."""

DROPS = pl.Schema(
    {name: pl.String() for name in ("prompt_id", "template", "ablation", "component")} | {"drop": pl.Float64()}
)
"""One row per prompt, ablation and component."""

_CURVE = {name: pl.Float64() for name in ("faithfulness", "ci_low", "ci_high", "cost")}

FAITHFULNESS = pl.Schema({**_NAMES, "size": pl.Float64(), "n_components": pl.Int64(), **_CURVE})
"""One row per score and size of circuit, of nodes."""

EDGE_FAITHFULNESS = pl.Schema({**_NAMES, "ranking": pl.String(), "size": pl.Float64(), "n_edges": pl.Int64(), **_CURVE})
"""One row per score, ranking (`signed`, `size`, `greedy`) and share of the edges; `n_edges` without dead ends."""

EDGE_SCORES = pl.Schema(
    {"task": pl.String(), "method": pl.String(), "source": pl.String(), "target": pl.String(), "score": pl.Float64()}
)
"""One row per baseline that scores edges, and edge: means over the pairs."""

TABLES = {
    EVALUATION_FILE: EVALUATION,
    EFFECTS_FILE: EFFECTS,
    FAITHFULNESS_FILE: FAITHFULNESS,
    EDGE_FAITHFULNESS_FILE: EDGE_FAITHFULNESS,
}
