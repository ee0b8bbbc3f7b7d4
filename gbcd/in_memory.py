"""Gradient norms for a notebook: a handful of prompts, a model in hand, no files and no Ray."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import cast

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gbcd import wrong_answers
from gbcd.engine.calibration import MIN_PROMPTS
from gbcd.engine.engine import Engine
from gbcd.engine.tables import FAILED, UNCALIBRATED, ShardTables, concatenated
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.printing import counted
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.compared import PartnerPool
from gbcd.run.results import component_table, unfold


def gradient_norms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    wrong_answer: str | Sequence[str] | None = None,
    batch_size: int = 64,
) -> pl.DataFrame:
    """Every statistic of every part of `model`, for each prompt: the table of `gbcd.scan`.

    The model is frozen by the call. Means are taken over the prompts themselves, task by task, and a prompt without a
    counterfactual is compared with a partner among them.

    Args:
        model: any causal language model that a family's file of gbcd knows.
        tokenizer: its tokenizer.
        prompts: what to run, for example from `gbcd.tasks.draw`.
        wrong_answer: one definition, or several; by default `margin` where all prompts have a wrong answer, else
            `inverse_logits`.
        batch_size: prompts in one forward pass.

    Returns:
        One row per prompt, wrong answer and part: `prompt_id, task, template, wrong_answer, component, node, layer,
        head, part, grad_norm, centered_grad_norm, contrast_norm, taylor, mean_attribution, attribution`. A prompt whose
        gradient is not finite has no rows.

    Raises:
        BadInput: no prompts, a prompt that cannot be used, an unknown wrong answer, one that is not defined for a
            prompt, a model that is not known, or a prompt whose computation failed.
    """
    if not prompts:
        raise BadInput("there are no prompts")
    loaded = models.prepared(type(model).__name__, model, tokenizer)
    encoded = loaded.encode(prompts)
    if wrong_answer is None:
        wrong_answer = "margin" if all(prompt.wrong_ids for prompt in encoded) else "inverse_logits"
    names = [wrong_answer] if isinstance(wrong_answer, str) else list(wrong_answer)
    for name in names:
        wrong_answers.refuse_undefined(wrong_answers.get(name), encoded, space_of(tokenizer))
    engine = Engine(loaded, names, Engine(loaded, names).calibrate(encoded, batch_size=batch_size))
    found = concatenated([engine.compute(batch) for batch in _batches(encoded, batch_size)])
    _say_what_is_missing(found)
    parts = cast(pl.DataFrame, pl.from_arrow(component_table(loaded.components)))
    return unfold(cast(pl.DataFrame, pl.from_arrow(found.norms)).lazy(), parts).collect()


def _batches(encoded: Sequence[EncodedPrompt], batch_size: int) -> Iterator[Sequence[EncodedPrompt]]:
    """Batches of one task each, with partners."""
    for task in dict.fromkeys(prompt.prompt.task for prompt in encoded):
        pool, of_task = PartnerPool(seed=0), [prompt for prompt in encoded if prompt.prompt.task == task]
        pool.add(of_task)
        with_partners = [pool.with_partner(prompt) for prompt in of_task]
        for start in range(0, len(with_partners), batch_size):
            yield with_partners[start : start + batch_size]


def _say_what_is_missing(found: ShardTables) -> None:
    """Raise where a prompt failed; warn of prompts that the means do not reach."""
    rows = found.prompts.select(["prompt_id", "status", "reason"]).to_pylist()
    for row in rows:
        if row["status"] == FAILED:
            raise BadInput(f"{row['prompt_id']}: {row['reason']}")
    if missing := {row["prompt_id"] for row in rows if row["status"] == UNCALIBRATED}:
        warnings.warn(
            f"no centered_grad_norm and no mean_attribution (null) for {counted(len(missing), 'prompt')}: a mean takes "
            f"at least {MIN_PROMPTS} prompts of the task that are as long",
            stacklevel=3,
        )
