"""How well a model solves one prompt, read from its logits; higher is always better.

For tokens the metrics are those of `gbcd.wrong_answers.losses.METRICS`, which the loss `margin` follows. For models
that answer at every position it is `-(1 / T) sum_t ||y_t - answer_t||^2` over the positions after BOS:
`mean_squared_error`, with the sign of a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.gram import widened
from gbcd.errors import BadInput
from gbcd.models.decoder import Run
from gbcd.prompting.outputs import OutputSpace
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers.losses import METRICS, padded_sets
from gbcd.wrong_answers.output_targets import mean_squared_error, output_context

MEAN_SQUARED_ERROR = "mean_squared_error"

Metric = Callable[[Float[Tensor, "batch *pos vocab"], list[int]], Float[Tensor, " batch"]]
"""Logits of some prompts and the indices of these prompts -> one value per prompt, with its graph."""


def metric_for(
    name: str, encoded: Sequence[EncodedPrompt], device: torch.device, space: OutputSpace | None = None
) -> Metric:
    """The metric `name` for these prompts; `space` is that of a model that answers at every position.

    Raises:
        BadInput: a metric that is unknown or for other answers, or a prompt lacks the wrong answer that it needs.
    """
    if space is not None and name == MEAN_SQUARED_ERROR:
        return _mean_squared_error(encoded, space)
    if name not in METRICS:
        raise BadInput(f"effects cannot be measured by {name!r}; the metrics are {', '.join(METRICS)}")
    needs_wrong = name != "negative_log_probability"
    if needs_wrong and (lacking := [prompt.prompt.id for prompt in encoded if not prompt.wrong_ids]):
        raise BadInput(f"{name} needs a wrong answer, and {len(lacking)} prompts have none, the first is {lacking[0]}")
    # padded once: a metric is read after every patched run
    answers = padded_sets([prompt.answer_ids for prompt in encoded], device)
    wrong = padded_sets([prompt.wrong_ids for prompt in encoded], device) if needs_wrong else answers
    return lambda logits, rows: METRICS[name](widened(logits), answers.of(rows), wrong.of(rows))


def metric_of(
    metric: Metric, logits: Float[Tensor, "example seq vocab"], rows: list[int]
) -> Float[np.ndarray, " example"]:
    """The metric of every example of a run; `rows` are the prompts that they are of."""
    return metric(read_answers(logits), rows).double().cpu().numpy()


def metric_gradient(metric: Metric, run: Run, rows: list[int]) -> Float[Tensor, "example seq vocab"]:
    """The metric's gradient by the logits of a run."""
    with torch.enable_grad():
        # where the model is nearly certain, 1 - p has few digits left in float32
        leaf = run.logits.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(metric(read_answers(leaf), rows).sum(), leaf)
    return gradient.to(run.logits.dtype)


def read_answers(logits: Float[Tensor, "example seq vocab"]) -> Float[Tensor, "example *pos vocab"]:
    """What a metric reads: the logits of the one answer, or those of every position."""
    return logits[:, 0] if logits.shape[1] == 1 else logits


def _mean_squared_error(encoded: Sequence[EncodedPrompt], space: OutputSpace) -> Metric:
    def metric(outputs: Tensor, rows: list[int]) -> Tensor:
        context = output_context([encoded[row] for row in rows], widened(outputs), space)
        return -mean_squared_error(widened(outputs), context.right, context.real)

    return metric
