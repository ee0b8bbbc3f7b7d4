"""Gradient norms for a notebook: a handful of prompts, a model in hand, no files and no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gbcd.engine.engine import Engine
from gbcd.engine.tables import concatenated
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.prompting.prompt import Prompt
from gbcd.run.results import component_table, unfold


def gradient_norms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    wrong_answer: str | Sequence[str] = "logit_difference",
    batch_size: int = 64,
) -> pl.DataFrame:
    """Norms of the weight gradients of every part of `model`, for each prompt: the table of `gbcd.scan`.

    The model is frozen by the call. Mean inputs for the centred norm are taken over the prompts themselves.

    Args:
        model: any causal language model that an architecture file of gbcd knows.
        tokenizer: its tokenizer.
        prompts: what to run, for example from `gbcd.tasks.draw`.
        wrong_answer: one definition, or several.
        batch_size: prompts in one forward pass.

    Returns:
        One row per prompt, wrong answer and part: `prompt_id, task, template, wrong_answer, component, node, layer,
        head, part, grad_norm, centered_grad_norm, taylor`. A prompt whose gradient is not finite has no rows.

    Raises:
        BadInput: no prompts, a prompt that cannot be used, an unknown wrong answer, or a model that is not known.
    """
    if not prompts:
        raise BadInput("there are no prompts")
    names = [wrong_answer] if isinstance(wrong_answer, str) else list(wrong_answer)
    loaded = models.prepared(type(model).__name__, model, tokenizer)
    encoded = loaded.encode(prompts)
    calibration = Engine(loaded, names).calibrate(encoded, batch_size=batch_size)
    engine = Engine(loaded, names, calibration)
    batches = [encoded[start : start + batch_size] for start in range(0, len(encoded), batch_size)]
    tables = concatenated([engine.compute(batch) for batch in batches])
    parts = cast(pl.DataFrame, pl.from_arrow(component_table(loaded.components)))
    return unfold(cast(pl.DataFrame, pl.from_arrow(tables.norms)).lazy(), parts).collect()
