"""From the statistics of a batch to its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gbcd.component import Component
from gbcd.engine import tables
from gbcd.engine.moments import PromptMoments
from gbcd.engine.tables import CENTERED, COMPARED, FAILED, NON_FINITE, OK, STATISTICS, UNCALIBRATED, ShardTables
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import LossContext, WrongAnswer
from gbcd.wrong_answers.losses import Target, set_logits
from gbcd.wrong_answers.output_targets import OutputContext
from gbcd.wrong_answers.output_targets import readings as output_readings


class LossRows(NamedTuple):
    """What one wrong answer gives of a batch.

    Attributes:
        wrong_answer: name of the definition.
        target: what it pulled towards; None of a prompt that failed.
        losses: one a prompt.
        statistics: by name, one value a prompt and component.
        many: attributions of edges and neurons, one row a prompt (`passes.Scores`).
    """

    wrong_answer: str
    target: Target | None
    losses: Float[Tensor, " prompt"]
    statistics: Mapping[str, Float[Tensor, "prompt component"]]
    many: Mapping[str, Float[Tensor, "prompt value"]]


class BatchRows(NamedTuple):
    """Prompts that were computed together.

    Attributes:
        prompts: one row each.
        context: what the model predicted; None of a prompt that failed.
        losses: one for each wrong answer.
        is_calibrated, has_other: of which prompts there is a mean, and a counterfactual or partner.
        reason: why it failed.
    """

    prompts: Sequence[EncodedPrompt]
    context: LossContext | OutputContext | None
    losses: tuple[LossRows, ...]
    is_calibrated: Sequence[bool]
    has_other: Sequence[bool]
    reason: str | None = None


def failed(prompt: EncodedPrompt, definitions: Sequence[WrongAnswer], reason: str) -> BatchRows:
    """The rows of a prompt that could not be computed, under every definition."""
    nothing = torch.full((1,), torch.nan)
    losses = tuple(LossRows(definition.name, None, nothing, {}, {}) for definition in definitions)
    return BatchRows([prompt], None, losses, [False], [False], reason)


def assemble(
    batch: Sequence[EncodedPrompt],
    groups: Iterable[BatchRows],
    tokenizer: PreTrainedTokenizerBase,
    components: Sequence[Component],
) -> ShardTables:
    """The tables of `batch`, whose prompts were computed in `groups`: rows by wrong answer, then in the batch's
    order."""
    rows = [(group, loss) for group in groups for loss in group.losses]
    place = {prompt.prompt.id: index for index, prompt in enumerate(batch)}
    order = np.argsort([place[prompt.prompt.id] for group, _ in rows for prompt in group.prompts], kind="stable")
    prompts = pa.concat_tables([_prompt_rows(group, loss, tokenizer) for group, loss in rows]).take(order)
    norms = pa.concat_tables([_norm_rows(group, loss, len(components)) for group, loss in rows]).take(order)
    return tables.concatenated([ShardTables(prompts, norms, _moments(rows))])


def _moments(rows: Iterable[tuple[BatchRows, LossRows]]) -> pa.Table | None:
    """The table `MOMENTS` of prompts with a reference and finite values; None where nothing is kept so."""
    moments: dict[tuple[str, str, str], PromptMoments] = {}
    for group, loss in rows:
        used = _finite(loss).cpu() & torch.tensor(group.has_other)
        for name, values in loss.many.items():
            key = group.prompts[0].prompt.task, loss.wrong_answer, name
            found = PromptMoments.of(values[used.to(values.device)])
            moments[key] = moments[key].added(found) if key in moments else found
    names = ("task", "wrong_answer", "of")
    lists = [dict(zip(names, key, strict=True)) | found.columns() for key, found in moments.items()]
    return pa.Table.from_pylist(lists, schema=tables.MOMENTS) if lists else None


def _finite(loss: LossRows) -> Bool[Tensor, " prompt"]:
    """Whether the loss and every statistic of a prompt is a number."""
    found = [torch.isfinite(loss.losses)]
    found += [torch.isfinite(table).all(1) for table in loss.statistics.values()]
    return torch.stack([one.to(loss.losses.device) for one in found]).all(0)


def _prompt_rows(group: BatchRows, loss: LossRows, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    records = [prompt.prompt for prompt in group.prompts]
    columns: dict[str, Any] = {
        "prompt_id": [record.id for record in records],
        "task": [record.task for record in records],
        "template": [record.template for record in records],
        "prompt": [record.text for record in records],
        "answer": ["|".join(record.answers) for record in records],
        "wrong_answer": [loss.wrong_answer] * len(records),
        "n_tokens": [len(prompt.ids) for prompt in group.prompts],
        "reference": [prompt.reference for prompt in group.prompts],
        "loss": loss.losses.tolist(),
        "status": _statuses(group, loss),
        "reason": [group.reason] * len(records),
    }
    columns |= _readings(group, loss, tokenizer)
    absent = {name: [None] * len(records) for name in tables.PROMPTS.names if name not in columns}
    return pa.table(columns | absent, schema=tables.PROMPTS)


def _statuses(group: BatchRows, loss: LossRows) -> list[str]:
    if group.reason is not None:
        return [FAILED] * len(group.prompts)
    missed = any(name in loss.statistics for name in CENTERED)
    return [
        NON_FINITE if not finite else UNCALIBRATED if missed and not calibrated else OK
        for finite, calibrated in zip(_finite(loss).tolist(), group.is_calibrated, strict=True)
    ]


def _readings(group: BatchRows, loss: LossRows, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """Columns of the table of prompts that depend on the kind of answer."""
    context, target = group.context, loss.target
    if context is None or target is None:
        return {"loss": [None] * len(group.prompts)}
    if not isinstance(context, LossContext):
        return output_readings(context, target)
    found: dict[str, list[Any]] = {}
    if target.tokens is not None:
        found["wrong_token"] = [
            "|".join(str(tokenizer.decode([token])) for token in tokens) for tokens in target.tokens
        ]
        found["wrong_logit"] = set_logits(context.logits, target.tokens).tolist()
    answers = set_logits(context.logits, context.answers)
    first_choice = context.logits.argmax(1).tolist()
    correct = [choice in tokens for choice, tokens in zip(first_choice, context.answers, strict=True)]
    above: list[bool | None] = [None] * len(context.answers)
    having = [row for row, tokens in enumerate(context.wrong) if tokens]
    if having:
        wrong = set_logits(context.logits[having], [context.wrong[row] for row in having])
        for row, is_above in zip(having, (answers[having] > wrong).tolist(), strict=True):
            above[row] = is_above
    return found | {"answer_logit": answers.tolist(), "correct": correct, "above_wrong": above}


def _norm_rows(group: BatchRows, loss: LossRows, n_components: int) -> pa.Table:
    finite = _finite(loss).cpu().numpy()
    records = [prompt.prompt for prompt in group.prompts]
    columns: dict[str, Any] = {
        "prompt_id": [record.id for record in records],
        "task": [record.task for record in records],
        "template": [record.template for record in records],
        "wrong_answer": [loss.wrong_answer] * len(records),
    }
    present = {name: finite & np.array(group.is_calibrated) for name in CENTERED}
    present |= {name: finite & np.array(group.has_other) for name in COMPARED}
    for name in STATISTICS:
        columns[name] = _lists(loss.statistics.get(name), present.get(name, finite), n_components)
    return pa.table(columns, schema=tables.norms_schema(n_components))


def _lists(
    values: Float[Tensor, "prompt component"] | None, present: np.ndarray, n_components: int
) -> pa.FixedSizeListArray:
    kind = tables.norms_schema(n_components).field(STATISTICS[0]).type
    if values is None:
        return pa.nulls(len(present), kind)
    flat = pa.array(np.where(present[:, None], values.float().cpu().numpy(), 0).ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~present))
