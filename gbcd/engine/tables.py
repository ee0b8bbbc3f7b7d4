"""Schemas of the tables that a shard is made of: what the engine hands to the store.

Statistics are *wide* on disk: one row per prompt and wrong answer, and per statistic one list with a value per
component, in the order of `components.parquet`. `gbcd.scan` unfolds it to the tidy table of the contract. Of edges and
neurons there are moments over the prompts of each batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

#: Statistics that the engine gives per prompt and part; attributions are signed.
NORMS = ("grad_norm", "centered_grad_norm", "contrast_norm")
ATTRIBUTIONS = ("taylor", "mean_attribution", "attribution")
STATISTICS = (*NORMS, *ATTRIBUTIONS)

#: Those that compare with the mean, and with the counterfactual or partner.
CENTERED, COMPARED = ("centered_grad_norm", "mean_attribution"), ("contrast_norm", "attribution")

OK, NON_FINITE, UNCALIBRATED, FAILED = "ok", "non_finite", "uncalibrated", "failed"
"""Status of a row. `uncalibrated`: the prompt is longer than the calibration sample reaches, or its template too rare
in it, so what is centred at its mean is null; the rest of the row is good. `failed`: the computation raised on this
prompt, for the `reason` given, so its row says what was asked and holds no values."""

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("task", pa.string()),
        ("template", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("wrong_answer", pa.string()),
        ("wrong_token", pa.string()),
        ("n_tokens", pa.int32()),
        ("reference", pa.string()),
        ("answer_logit", pa.float32()),
        ("wrong_logit", pa.float32()),
        ("correct", pa.bool_()),
        ("above_wrong", pa.bool_()),
        ("loss", pa.float32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row per prompt and wrong answer. `wrong_answer` is the definition, `wrong_token` the token it picked (null for a
distribution), `reference` what contrast norms and attributions compare with (`counterfactual`, `partner`, `none`),
`correct` whether the model's first choice is an answer, `above_wrong` whether the answer's logit is above that of the
task's own wrong answer (null where it has none)."""

COMPONENTS = pa.schema(
    [
        ("component", pa.string()),
        ("node", pa.string()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("part", pa.string()),
        ("n_params", pa.int64()),
    ]
)

_MOMENT = pa.list_(pa.field("item", pa.float64(), nullable=False))

MOMENTS = pa.schema(
    [*((name, pa.string()) for name in ("task", "wrong_answer", "of")), ("n", pa.int64())]
    + [(name, _MOMENT) for name in ("sum", "sum_sq", "n_positive")]
)
"""Rows by task, wrong answer and what attributions are `of`: `edges`, in the order of `gbcd.engine.edges`, or the
neurons of an MLP, by its name. Over `n` prompts the sum of the attributions of each, the sum of their squares and the
number of positive ones."""

EDGES = "edges"


def norms_schema(n_components: int) -> pa.Schema:
    """Schema of the statistics: float32 lists of `n_components` values, null where a prompt has none."""
    values = pa.list_(pa.field("item", pa.float32(), nullable=False), n_components)
    keys = [(name, pa.string()) for name in ("prompt_id", "task", "template", "wrong_answer")]
    return pa.schema([*keys, *((name, values) for name in STATISTICS)])


class ShardTables(NamedTuple):
    """Everything that one shard, or one batch of it, writes; `moments` where a study asks for edges or neurons."""

    prompts: pa.Table
    norms: pa.Table
    moments: pa.Table | None = None


def concatenated(batches: Sequence[ShardTables]) -> ShardTables:
    """The tables of a shard from those of its batches: rows by wrong answer, then in the order of the batches."""
    prompts, norms = (pa.concat_tables(tables) for tables in ([b.prompts for b in batches], [b.norms for b in batches]))
    names = prompts["wrong_answer"].to_pylist()
    rank = {name: number for number, name in enumerate(dict.fromkeys(names))}
    at = np.argsort([rank[name] for name in names], kind="stable")
    moments = [batch.moments for batch in batches if batch.moments is not None]
    return ShardTables(prompts.take(at), norms.take(at), pa.concat_tables(moments) if moments else None)
