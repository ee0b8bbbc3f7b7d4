"""From the statistics of batches to the tables of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gbcd.component import Component
from gbcd.engine import tables
from gbcd.engine.part_norms import PartNorms
from gbcd.engine.tables import NON_FINITE, OK, UNCALIBRATED
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import Scene
from gbcd.wrong_answers.losses import Target, set_logits
from gbcd.wrong_answers.output_targets import OutputScene
from gbcd.wrong_answers.output_targets import readings as output_readings


@dataclass(frozen=True)
class BatchRows:
    """One batch under one wrong answer.

    Attributes:
        wrong_answer: name of the definition.
        number: index of the batch's first prompt in its shard.
        prompts: the prompts, one row each.
        calibrated: whether the mean inputs reach as far as each prompt.
        scene, target, losses, norms: what was computed.
    """

    wrong_answer: str
    number: int
    prompts: Sequence[EncodedPrompt]
    calibrated: Sequence[bool]
    scene: Scene | OutputScene
    target: Target
    losses: Float[Tensor, " prompt"]
    norms: PartNorms

    @cached_property
    def finite(self) -> Bool[Tensor, " prompt"]:
        """Whether the loss and every statistic of a prompt is a number."""
        found = [
            table for table in (self.norms.squares, self.norms.centered_squares, self.norms.taylor) if table is not None
        ]
        per_table = [torch.isfinite(table).all(1) for table in found]
        return torch.stack([torch.isfinite(self.losses), *per_table]).all(0)

    @property
    def statuses(self) -> list[str]:
        """One status per prompt."""
        pairs = zip(self.finite.tolist(), self.calibrated, strict=True)
        return [NON_FINITE if not finite else OK if calibrated else UNCALIBRATED for finite, calibrated in pairs]


def assemble(
    batches: Sequence[BatchRows], tokenizer: PreTrainedTokenizerBase, components: Sequence[Component]
) -> tables.ShardTables:
    """The tables of a shard: rows in order of wrong answer (as the study lists them), then of prompt."""
    order = {name: index for index, name in enumerate(dict.fromkeys(batch.wrong_answer for batch in batches))}
    batches = sorted(batches, key=lambda batch: order[batch.wrong_answer])
    return tables.ShardTables(
        pa.concat_tables([_prompt_rows(batch, tokenizer) for batch in batches]),
        pa.concat_tables([_norm_rows(batch, len(components)) for batch in batches]),
    )


def _prompt_rows(batch: BatchRows, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    records = [prompt.prompt for prompt in batch.prompts]
    columns = {
        "prompt_id": [record.id for record in records],
        "task": [record.task for record in records],
        "template": [record.template for record in records],
        "prompt": [record.text for record in records],
        "answer": ["|".join(record.answers) for record in records],
        "wrong_answer": [batch.wrong_answer] * len(records),
        "n_tokens": [len(prompt.ids) for prompt in batch.prompts],
        "loss": batch.losses.tolist(),
        "status": batch.statuses,
        "reason": [None] * len(records),
    }
    scene, target = batch.scene, batch.target
    read = _token_readings(scene, target, tokenizer) if isinstance(scene, Scene) else output_readings(scene, target)
    return pa.table(columns | read, schema=tables.PROMPTS)


def _token_readings(scene: Scene, target: Target, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """Columns of the table of prompts that depend on the kind of answer, for answers that are tokens."""
    wrong_tokens: list[str | None] = [None] * len(scene.answers)
    wrong_logits: list[float | None] = [None] * len(scene.answers)
    if target.tokens is not None:
        wrong_tokens = ["|".join(str(tokenizer.decode([token])) for token in tokens) for tokens in target.tokens]
        wrong_logits = set_logits(scene.logits, target.tokens).tolist()
    first_choice = scene.logits.argmax(1).tolist()
    return {
        "wrong_token": wrong_tokens,
        "answer_logit": set_logits(scene.logits, scene.answers).tolist(),
        "wrong_logit": wrong_logits,
        "correct": [choice in tokens for choice, tokens in zip(first_choice, scene.answers, strict=True)],
    }


def _norm_rows(batch: BatchRows, n_components: int) -> pa.Table:
    finite = batch.finite.cpu().numpy()
    centered = batch.norms.centered_squares
    absent = torch.full_like(batch.norms.squares, torch.nan)
    columns = {
        "grad_norm": _lists(batch.norms.squares.clamp(min=0).sqrt(), finite),
        "centered_grad_norm": _lists(
            absent if centered is None else centered.clamp(min=0).sqrt(),
            finite & np.array(batch.calibrated) & (centered is not None),
        ),
        "taylor": _lists(batch.norms.taylor, finite),
    }
    records = [prompt.prompt for prompt in batch.prompts]
    keys = {
        "prompt_id": [record.id for record in records],
        "task": [record.task for record in records],
        "template": [record.template for record in records],
        "wrong_answer": [batch.wrong_answer] * len(records),
    }
    return pa.table(keys | columns, schema=tables.norms_schema(n_components))


def _lists(values: Float[Tensor, "prompt component"], present: np.ndarray) -> pa.FixedSizeListArray:
    numbers = values.float().cpu().numpy()
    flat = pa.array(np.where(present[:, None], numbers, 0).ravel(), pa.float32())
    kind = tables.norms_schema(numbers.shape[1]).field("taylor").type
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~present))
