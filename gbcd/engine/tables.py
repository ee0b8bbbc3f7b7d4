"""Schemas of the tables that a shard is made of: what the engine hands to the store.

Norms are *wide* on disk: one row per prompt and wrong answer, and per statistic one list with a value per component, in
the order of `components.parquet`. `gbcd.scan` unfolds it to the tidy table of the contract.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

#: Statistics that the engine gives per prompt and part.
STATISTICS = ("grad_norm", "centered_grad_norm", "taylor")

OK, NON_FINITE, UNCALIBRATED, FAILED = "ok", "non_finite", "uncalibrated", "failed"
"""Status of a row. `uncalibrated`: the prompt is longer than the calibration sample reaches, or its template too rare
in it, so its centred norms are null; the rest of the row is good. `failed`: the computation raised on this prompt, so
its row says what was asked and holds no values."""

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
        ("answer_logit", pa.float32()),
        ("wrong_logit", pa.float32()),
        ("correct", pa.bool_()),
        ("loss", pa.float32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row per prompt and wrong answer. `wrong_answer` is the definition, `wrong_token` the token it picked (null for a
distribution), `correct` whether the model's first choice is an answer, `reason` why a prompt failed."""

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


def norms_schema(n_components: int) -> pa.Schema:
    """Schema of the norms: float32 lists of `n_components` values; null where the row is `non_finite` or `failed`, and
    the centred ones also where it is `uncalibrated`."""
    values = pa.list_(pa.field("item", pa.float32(), nullable=False), n_components)
    keys = [(name, pa.string()) for name in ("prompt_id", "task", "template", "wrong_answer")]
    return pa.schema([*keys, *((name, values) for name in STATISTICS)])


class ShardTables(NamedTuple):
    """Tables of some prompts; `edges` where the study asks for edges."""

    prompts: pa.Table
    norms: pa.Table
    edges: pa.Table | None = None
