"""How well a model solves one prompt, read from the logits at its last position; higher is always better.

Answers and wrong answers are sets of tokens A and W. With p the probability and lse the log of a sum of exponentials:

    logit_difference            lse logits(A) - lse logits(W), the log odds of right against wrong; for one token each
                                it is the plain difference of logits
    probability_difference      p(A) - p(W)
    negative_log_probability    log p(A): the name is that of the loss, the sign that of a metric
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gbcd.errors import BadInput
from gbcd.gradients.gram import widened
from gbcd.prompting.tokens import EncodedPrompt

Metric = Callable[[Float[Tensor, "batch vocab"], list[int]], Float[Tensor, "batch"]]
"""Logits of some prompts and the indices of these prompts -> one value per prompt, with its graph."""


def metric_for(name: str, encoded: Sequence[EncodedPrompt], device: torch.device) -> Metric:
    """The metric `name` for these prompts.

    Raises:
        BadInput: unknown metric, or a prompt lacks the wrong answer that the metric needs.
    """
    if name not in _METRICS:
        raise BadInput(f"effects cannot be measured by {name!r}; the metrics are {', '.join(_METRICS)}")
    needs_wrong = name != "negative_log_probability"
    if needs_wrong and (lacking := [prompt.prompt.id for prompt in encoded if not prompt.wrong_ids]):
        raise BadInput(f"{name} needs a wrong answer, and {len(lacking)} prompts have none, the first is {lacking[0]}")
    answers = _padded([prompt.answer_ids for prompt in encoded], device)
    wrong = _padded([prompt.wrong_ids for prompt in encoded], device) if needs_wrong else answers
    formula = _METRICS[name]
    return lambda logits, rows: formula(widened(logits), answers[rows], wrong[rows])


def _logit_difference(logits: Tensor, answers: Tensor, wrong: Tensor) -> Tensor:
    return _lse(logits, answers) - _lse(logits, wrong)


def _probability_difference(logits: Tensor, answers: Tensor, wrong: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return _lse(log_p, answers).exp() - _lse(log_p, wrong).exp()


def _log_probability(logits: Tensor, answers: Tensor, wrong: Tensor) -> Tensor:
    return _lse(logits.log_softmax(-1), answers)


_METRICS = {
    "logit_difference": _logit_difference,
    "probability_difference": _probability_difference,
    "negative_log_probability": _log_probability,
}


def _lse(logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, "batch set"]) -> Float[Tensor, "batch"]:
    chosen = logits.gather(1, tokens.clamp_min(0))
    return chosen.masked_fill(tokens < 0, -torch.inf).logsumexp(1)


def _padded(sets: Sequence[tuple[int, ...]], device: torch.device) -> Int[Tensor, "prompt set"]:
    longest = max(map(len, sets))
    return torch.tensor([[*tokens, *[-1] * (longest - len(tokens))] for tokens in sets], device=device)
