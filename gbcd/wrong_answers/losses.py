"""From a target to one loss per prompt.

A target is a constant: it is made from detached logits, so the gradient of its loss is that of a fixed objective. All
losses here are of one prompt each (over all sequences of its unit); nothing is averaged over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenSet = tuple[int, ...]


class PaddedSets(NamedTuple):
    """Sets of tokens as a rectangle: ids, and a mask of what is real."""

    ids: Int[Tensor, "prompt size"]
    present: Bool[Tensor, "prompt size"]

    def of(self, rows: list[int]) -> PaddedSets:
        """The sets of some prompts."""
        return PaddedSets(self.ids[rows], self.present[rows])


@runtime_checkable
class Target(Protocol):
    """Something to pull the prediction towards.

    Attributes:
        tokens: the tokens that each prompt is pulled towards; None for a target that is a distribution.
        reads_all: True where the loss is a sum over all rows of `logits` (prompt and twin, or the positions of one
            prompt); False where it reads the first alone.
    """

    @property
    def tokens(self) -> Sequence[TokenSet] | None: ...  # noqa: D102

    @property
    def reads_all(self) -> bool: ...  # noqa: D102

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        """One loss per prompt."""
        ...


@dataclass(frozen=True)
class TowardsTokens:
    """Cross-entropy towards a token, or towards a set: `-log sum_{v in set} softmax(logits)_v`."""

    tokens: Sequence[TokenSet]
    reads_all: bool = False

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        """Cross-entropy at the prompt's own answer position; see `Target`."""
        own = logits[:, 0]
        return torch.logsumexp(own, 1) - set_logits(own, self.tokens)


@dataclass(frozen=True)
class TowardsDistribution:
    """Cross-entropy towards a distribution over the vocabulary: `-sum_v p_v log softmax(logits)_v`."""

    probabilities: Float[Tensor, "prompt vocab"]
    tokens: None = None
    reads_all: bool = False

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        """Cross-entropy at the prompt's own answer position; see `Target`."""
        own = logits[:, 0]
        return torch.logsumexp(own, 1) - (self.probabilities * own).sum(1)


@dataclass(frozen=True)
class SquaredLogitDifference:
    """`(logit_answer - logit_wrong)^2`, summed over the prompt and its twin (the loss of the original proposal).

    In the twin answer and wrong answer trade places, which the square does not see. For sets of tokens the logit is the
    logarithm of the summed exponentials, so that the difference is the log odds of one set against the other.
    """

    answers: Sequence[TokenSet]
    tokens: Sequence[TokenSet]
    reads_all: bool = True

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        """Sum of the squared differences; see `Target`."""
        total = logits.new_zeros(len(logits))
        for sequence in logits.unbind(1):
            total = total + (set_logits(sequence, self.answers) - set_logits(sequence, self.tokens)).square()
        return total


@dataclass(frozen=True)
class Margin:
    """How well the prompt is solved, by the metric of its task, one of `METRICS`; at its own answer position."""

    answers: Sequence[TokenSet]
    tokens: Sequence[TokenSet]
    metric: str = "logit_difference"
    reads_all: bool = False

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        """The metric of each prompt; see `Target`."""
        answers, wrong = (padded_sets(sets, logits.device) for sets in (self.answers, self.tokens))
        return METRICS[self.metric](logits[:, 0], answers, wrong)


def _logit_difference(
    logits: Float[Tensor, "prompt vocab"], answers: PaddedSets, wrong: PaddedSets
) -> Float[Tensor, " prompt"]:
    return _summed(logits, answers) - _summed(logits, wrong)


def _probability_difference(
    logits: Float[Tensor, "prompt vocab"], answers: PaddedSets, wrong: PaddedSets
) -> Float[Tensor, " prompt"]:
    log_p = logits.log_softmax(-1)
    return _summed(log_p, answers).exp() - _summed(log_p, wrong).exp()


def _log_probability(
    logits: Float[Tensor, "prompt vocab"], answers: PaddedSets, wrong: PaddedSets
) -> Float[Tensor, " prompt"]:
    return _summed(logits.log_softmax(-1), answers)


#: How well a prompt is solved, by its set of answers A and of wrong answers W; higher is better. With p the probability
#: and lse the log of a sum of exponentials: `lse logits(A) - lse logits(W)` (of single tokens, the difference of their
#: logits); `p(A) - p(W)`; `log p(A)`, whose name is that of the loss and whose sign that of a metric.
METRICS: dict[str, Callable[[Tensor, PaddedSets, PaddedSets], Tensor]] = {
    "logit_difference": _logit_difference,
    "probability_difference": _probability_difference,
    "negative_log_probability": _log_probability,
}


def set_logits(logits: Float[Tensor, "prompt vocab"], sets: Sequence[TokenSet]) -> Float[Tensor, " prompt"]:
    """`log sum_{v in set} exp(logit_v)` for each prompt; of one token, its logit."""
    return _summed(logits, padded_sets(sets, logits.device))


def _summed(logits: Float[Tensor, "prompt vocab"], sets: PaddedSets) -> Float[Tensor, " prompt"]:
    return logits.gather(1, sets.ids).masked_fill(~sets.present, -torch.inf).logsumexp(1)


def padded_sets(sets: Sequence[TokenSet], device: torch.device) -> PaddedSets:
    """Sets of tokens, none of them empty, as a rectangle."""
    width = max(len(tokens) for tokens in sets)
    index = torch.tensor([[*tokens, *[tokens[0]] * (width - len(tokens))] for tokens in sets], device=device)
    sizes = torch.tensor([len(tokens) for tokens in sets], device=device)
    return PaddedSets(index, torch.arange(width, device=device).unsqueeze(0) < sizes.unsqueeze(1))
