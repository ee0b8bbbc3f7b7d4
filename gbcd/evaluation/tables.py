"""Tables that an evaluation writes beside the results: their files and columns."""

from __future__ import annotations

import polars as pl

from gbcd.component import file_name

EVALUATION_FILE, EFFECTS_FILE = "evaluation.parquet", "effects.parquet"
FAITHFULNESS_FILE, AGGREGATION_FILE = "faithfulness.parquet", "aggregation.parquet"


def edges_file(task: str, wrong_answer: str) -> str:
    """File of the circuit whose edges have scores of their own."""
    return file_name("circuit_edges", task, wrong_answer, suffix="json")


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
"""One row per score, truth, group (`all`, `heads`, `mlps`) and figure; `cost` in forward passes per prompt."""

EFFECTS = pl.Schema(
    {
        **{name: pl.String() for name in ("task", "method", "component", "node", "part")},
        **{name: pl.Int64() for name in ("layer", "head")},
        **_BOUNDS,
        "gap": pl.Float64(),
        "n_pairs": pl.Int64(),
        "n_unpatched": pl.Int64(),
        "cost": pl.Float64(),
        "wrong_answer": pl.String(),
    }
)
"""One row per component and method. Of an ablation or an attribution `value` is the mean drop in the metric (or its
estimate). `gap` is the mean metric on the prompts less that on their counterfactuals; `cost` in forward passes over all
pairs."""

FAITHFULNESS = pl.Schema(
    {**_NAMES, "size": pl.Float64(), "n_components": pl.Int64(), "faithfulness": pl.Float64()}
    | {"ci_low": pl.Float64(), "ci_high": pl.Float64(), "cost": pl.Float64()}
)
"""One row per score and size of circuit."""

AGGREGATION = pl.Schema(
    {**_NAMES, "n": pl.Int64(), "n_blocks": pl.Int64()}
    | {f"{figure}_{of}": pl.Float64() for figure in ("auroc", "spearman") for of in ("mean", "std")}
)
"""One row per gradient score and number of prompts n that it is a mean over, held against the effects of resampling;
mean and standard deviation over `n_blocks` separate blocks of n prompts."""
