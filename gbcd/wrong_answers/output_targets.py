"""What "maximally wrong" means for models that give an output at every position.

The same names as in `gbcd.wrong_answers`, each defined here for sequences of symbols, for numbers, for both, or refused
with the reason. The loss is a mean squared error over all positions but that of BOS,

    (1 / T) sum_t ||y_t - target_t||^2,

with y_t the output vector at position t: one coordinate for a number, one for each symbol (a compiled program puts 1
at the symbol that it means and 0 at the others). A definition from outside the package is for tokens alone until it is
given a second function with `@for_outputs("its name")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gbcd.names import register_name
from gbcd.prompting.outputs import OutputSpace
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers.losses import Target

#: A number counts as right when it lies within this share of the model's range.
CLOSE = 0.01

BOTH = ("sequence", "number")


class OutputContext(NamedTuple):
    """What a definition may look at, for a batch of prompts.

    Attributes:
        outputs: the model's outputs, detached, float32 or wider.
        right, wrong: those of the task's answers; `wrong` is zero for prompts that have no wrong answer.
        real: False at BOS and at padding.
        space: what the model can answer.
    """

    outputs: Float[Tensor, "prompt pos value"]
    right: Float[Tensor, "prompt pos value"]
    wrong: Float[Tensor, "prompt pos value"]
    real: Bool[Tensor, "prompt pos"]
    space: OutputSpace


@dataclass(frozen=True)
class TowardsOutputs:
    """Mean squared error towards `values`, over the positions that are `real`."""

    values: Float[Tensor, "prompt pos value"]
    real: Bool[Tensor, "prompt pos"]
    tokens: None = None
    reads_all: bool = True

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        """One loss per prompt; see `gbcd.wrong_answers.losses.Target`."""
        return mean_squared_error(logits, self.values, self.real)


@dataclass(frozen=True)
class SquaredOutputDifference:
    """`(1 / T) sum_t (y_t[right] - y_t[wrong])^2`, the loss of the original proposal at every position."""

    direction: Float[Tensor, "prompt pos value"]
    real: Bool[Tensor, "prompt pos"]
    tokens: None = None
    reads_all: bool = True

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        """One loss per prompt; see `gbcd.wrong_answers.losses.Target`."""
        return _mean((logits * self.direction).sum(2).square(), self.real)


class OutputDefinition(NamedTuple):
    """A definition for outputs: for which kinds of answers it is defined, and why not for the others."""

    define: Callable[[OutputContext], Target] | None
    kinds: Sequence[str]
    reason: str


_REGISTRY: dict[str, OutputDefinition] = {
    "most_dissimilar": OutputDefinition(
        None, (), "the outputs of a compiled program are orthogonal directions, so all are equally dissimilar"
    ),
    "semantic": OutputDefinition(None, (), "the symbols and numbers of a program have no meaning as sentences"),
}


def for_outputs(
    name: str, kinds: Sequence[str] = BOTH, reason: str = ""
) -> Callable[[Callable[[OutputContext], Target]], Callable[[OutputContext], Target]]:
    """Register the decorated function as what the wrong answer `name` means for outputs of `kinds`.

    `reason` says why it means nothing for the other kinds.
    """

    def decorate(define: Callable[[OutputContext], Target]) -> Callable[[OutputContext], Target]:
        register_name("wrong answer for outputs", name)
        _REGISTRY[name] = OutputDefinition(define, kinds, reason)
        return define

    return decorate


def target_of(name: str, context: OutputContext) -> Target:
    """The target of the wrong answer `name`; see `refuse_undefined`."""
    define = _REGISTRY[name].define
    assert define is not None
    return define(context)


def why_undefined(name: str, kind: str) -> str | None:
    """Why the wrong answer `name` means nothing for answers of `kind`; None where it does."""
    if name not in _REGISTRY:
        return (
            f"{name} is defined for tokens alone, and the answers here are a {kind} at every position; give it a "
            "second function with gbcd.wrong_answers.output_targets.for_outputs, or choose another definition"
        )
    found = _REGISTRY[name]
    return None if kind in found.kinds else f"{name} is not defined for answers of the kind {kind}: {found.reason}"


def output_context(
    batch: Sequence[EncodedPrompt], outputs: Float[Tensor, "prompt pos value"], space: OutputSpace
) -> OutputContext:
    """What definitions may look at; `outputs` are the model's, in float32 or wider."""
    right, wrong = torch.zeros_like(outputs), torch.zeros_like(outputs)
    real = torch.zeros(outputs.shape[:2], dtype=torch.bool, device=outputs.device)
    for row, prompt in enumerate(batch):
        assert prompt.outputs is not None
        real[row, 1 : len(prompt.ids)] = True
        for place, values in ((right, prompt.outputs.right), (wrong, prompt.outputs.wrong)):
            if values:
                place[row, 1 : len(prompt.ids)] = _vectors(values, space).to(outputs)
    return OutputContext(outputs.detach(), right, wrong, real, space)


def mean_squared_error(
    outputs: Float[Tensor, "prompt pos value"],
    values: Float[Tensor, "prompt pos value"],
    real: Bool[Tensor, "prompt pos"],
) -> Float[Tensor, " prompt"]:
    """`(1 / T) sum_t ||y_t - value_t||^2` over the T positions that are `real`."""
    return _mean((outputs - values).square().sum(2), real)


def readings(context: OutputContext, target: Target) -> dict[str, list[Any]]:
    """Columns of the table of prompts that depend on the kind of answer; outputs have no logits."""
    if context.space.symbols:
        matches = context.outputs.argmax(2) == context.right.argmax(2)
    else:
        matches = (context.outputs - context.right).abs().squeeze(2) <= CLOSE * (context.space.high - context.space.low)
    absent = [None] * len(context.outputs)
    return {
        "wrong_token": _texts(target, context) or absent,
        "answer_logit": absent,
        "wrong_logit": absent,
        "correct": (matches | ~context.real).all(1).tolist(),
    }


@for_outputs(
    "logit_difference", ("sequence",), "a number is one output, and there are no two of which to take a difference"
)
def logit_difference(context: OutputContext) -> Target:
    """`(1 / T) sum_t (y_t[right] - y_t[wrong])^2`, with the farthest symbol of each position as the wrong one."""
    return SquaredOutputDifference(context.right - context.wrong, context.real)


@for_outputs("foil")
def foil(context: OutputContext) -> Target:
    """Mean squared error towards the task's own wrong answer, which is the farthest output of each position."""
    return TowardsOutputs(context.wrong, context.real)


@for_outputs("least_likely", ("sequence",), "a number is one output, with no likelihood")
def least_likely(context: OutputContext) -> Target:
    """Mean squared error towards the symbol with the lowest output; of equals, the first."""
    chosen = torch.nn.functional.one_hot(context.outputs.argmin(2), context.space.width)
    return TowardsOutputs(chosen.to(context.outputs), context.real)


@for_outputs("inverse_logits")
def inverse_logits(context: OutputContext) -> Target:
    """Mean squared error towards the prediction turned upside down.

    For symbols `softmax(-y_t)`; for a number its mirror image in the model's range, `low + high - y_t`.
    """
    if context.space.symbols:
        return TowardsOutputs(torch.softmax(-context.outputs, 2), context.real)
    return TowardsOutputs(context.space.low + context.space.high - context.outputs, context.real)


@for_outputs("right_answer")
def right_answer(context: OutputContext) -> Target:
    """Mean squared error towards the right answer; zero, with its gradient, where the program is computed exactly."""
    return TowardsOutputs(context.right, context.real)


def _vectors(values: Sequence[float], space: OutputSpace) -> Float[Tensor, "pos value"]:
    if space.symbols:
        return torch.nn.functional.one_hot(torch.tensor(values).long(), space.width).double()
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def _texts(target: Target, context: OutputContext) -> list[str] | None:
    if not isinstance(target, TowardsOutputs) or not _is_one_hot(target, context.space):
        return None
    values = target.values.argmax(2).double() if context.space.symbols else target.values.squeeze(2)
    rows = zip(values.tolist(), context.real.tolist(), strict=True)
    return [context.space.write(tuple(v for v, real in zip(*row, strict=True) if real)) for row in rows]


def _is_one_hot(target: TowardsOutputs, space: OutputSpace) -> bool:
    return not space.symbols or bool((target.values[target.real].amax(1) == 1).all())


def _mean(values: Float[Tensor, "prompt pos"], real: Bool[Tensor, "prompt pos"]) -> Float[Tensor, " prompt"]:
    return (values * real).sum(1) / real.sum(1)
