"""What "maximally wrong" may mean: each definition turns a prediction into a target.

A definition is a function of a `LossContext` (what the model predicted, what would have been right) that returns a
target of `gbcd.wrong_answers.losses`. Targets come from the same forward pass, detached. To add one, decorate a
function with `@wrong_answer("name")`; its docstring states the formula and the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.errors import BadInput
from gbcd.names import register_name
from gbcd.prompting.outputs import OutputSpace
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.study import check_names
from gbcd.wrong_answers import output_targets
from gbcd.wrong_answers.losses import (
    Margin,
    SquaredLogitDifference,
    Target,
    TokenSet,
    TowardsDistribution,
    TowardsTokens,
)


class LossContext(NamedTuple):
    """What a definition may look at, for a batch of prompts.

    Attributes:
        logits: the model's prediction at each prompt's answer, detached, float32 or wider.
        answers: the right tokens of each prompt.
        wrong: the task's own wrong tokens of each prompt; empty where the task has none.
        unembedding: the model's unembedding matrix.
        farthest: the token farthest in meaning from the answer, of each prompt; empty where no study asked for it.
        metric: how well prompts of this task are solved is measured by this, one of `losses.METRICS`.
    """

    logits: Float[Tensor, "prompt vocab"]
    answers: Sequence[TokenSet]
    wrong: Sequence[TokenSet]
    unembedding: Float[Tensor, "vocab d_model"]
    farthest: Sequence[TokenSet] = ()
    metric: str = "logit_difference"


#: What the sign of an attribution says where a definition does not say it, and where the loss is the distance to a
#: wrong answer: an attribution is what a component adds to the loss.
RAISES = "above zero a component raises the loss, below zero it lowers it"
_AWAY = "above zero a component works against the wrong answer, below zero for it"


class WrongAnswer(NamedTuple):
    """A registered definition.

    Attributes:
        name: as studies and tables call it.
        define: makes the target.
        needs_foil: True where it reads the task's own wrong answer.
        reads_twin: True where its loss is a sum over the prompt and its twin.
        needs_meaning: True where it reads the answer farthest in meaning, which `meaning.py` finds beforehand.
        sign: what the sign of an attribution says under its loss.
    """

    name: str
    define: Callable[[LossContext], Target]
    needs_foil: bool
    reads_twin: bool
    needs_meaning: bool = False
    sign: str = RAISES

    @property
    def summary(self) -> str:
        """First line of the definition's docstring."""
        return (self.define.__doc__ or "").strip().splitlines()[0]


_REGISTRY: dict[str, WrongAnswer] = {}


def wrong_answer(
    name: str, *, needs_foil: bool = False, reads_twin: bool = False, needs_meaning: bool = False, sign: str = RAISES
) -> Callable[[Callable[[LossContext], Target]], Callable[[LossContext], Target]]:
    """Register the decorated function as the definition `name`.

    Raises:
        BadInput: the name is taken, or has characters that file names cannot have.
    """

    def decorate(define: Callable[[LossContext], Target]) -> Callable[[LossContext], Target]:
        register_name("wrong answer", name)
        if name in _REGISTRY:
            raise BadInput(f"a wrong answer named {name!r} is registered already: choose another name")
        _REGISTRY[name] = WrongAnswer(name, define, needs_foil, reads_twin, needs_meaning, sign)
        return define

    return decorate


def names() -> list[str]:
    """All definitions, in order of registration."""
    return list(_REGISTRY)


def get(name: str) -> WrongAnswer:
    """The definition called `name`.

    Raises:
        BadInput: there is none.
    """
    refuse_unknown((name,))
    return _REGISTRY[name]


def refuse_unknown(asked: tuple[str, ...]) -> None:
    """Check that there are such definitions.

    Raises:
        BadInput: names those that there are not, with the nearest.
    """
    remedy = "`gbcd list wrong-answers` describes them; --definitions FILE.py adds your own."
    check_names("wrong answer", asked, names(), remedy)


def sign_of(name: str) -> str:
    """What the sign of an attribution says under the loss of `name`; a study's own definition may not be loaded."""
    return _REGISTRY[name].sign if name in _REGISTRY else RAISES


def why_undefined(definition: WrongAnswer, space: OutputSpace | None) -> str | None:
    """Why `definition` means nothing for the answers of a model; None where it does.

    `space` is that of a model with outputs at every position; for a language model, None, every definition does.
    """
    return None if space is None else output_targets.why_undefined(definition.name, space.kind)


def refuse_undefined(
    definition: WrongAnswer, encoded: Sequence[EncodedPrompt], space: OutputSpace | None = None
) -> None:
    """Check that `definition` is defined for all prompts; `space` is that of a model with outputs at every position.

    Raises:
        BadInput: names the first prompt that lacks what the definition reads.
    """
    if (reason := why_undefined(definition, space)) is not None:
        raise BadInput(reason)
    for prompt in encoded:
        if definition.needs_meaning and not prompt.farthest_ids:
            raise BadInput(
                f"{definition.name} needs the answer farthest in meaning, and {prompt.prompt.id} has none; "
                "prepare the prompts with gbcd.wrong_answers.meaning.with_farthest"
            )
        if definition.needs_foil and not (prompt.outputs.wrong if prompt.outputs else prompt.wrong_ids):
            raise BadInput(
                f"{definition.name} compares with the task's own wrong answer, and {prompt.prompt.id} has none; "
                "add one, or choose another definition"
            )


@wrong_answer(
    "margin",
    needs_foil=True,
    sign="above zero a component works for the right answer, below zero against it",
)
def margin(context: LossContext) -> Target:
    """How far the answer is ahead of the wrong answer, by the task's own metric.

    `logit_answer - logit_wrong`, for sets of tokens the log odds of one set against the other; of tasks that are
    measured otherwise, their metric: `p(answer) - p(wrong)`, or `log p(answer)`.
    """
    return Margin(context.answers, context.wrong, context.metric)


@wrong_answer(
    "logit_difference",
    needs_foil=True,
    reads_twin=True,
    sign="above zero a component makes the squared difference larger, below zero smaller",
)
def logit_difference(context: LossContext) -> Target:
    """Squared logit difference of answer and wrong answer, over the prompt and its twin.

    `sum over prompt and twin of (logit_answer - logit_wrong)^2`; the original proposal (Talavante). Without a twin:
    the prompt alone.
    """
    return SquaredLogitDifference(context.answers, context.wrong)


@wrong_answer("foil", needs_foil=True, sign=_AWAY)
def foil(context: LossContext) -> Target:
    """Cross-entropy towards the task's own wrong answer.

    `-log p(wrong)`; for a set, of its total probability.
    """
    return TowardsTokens(context.wrong)


@wrong_answer("most_dissimilar", sign=_AWAY)
def most_dissimilar(context: LossContext) -> Target:
    """Cross-entropy towards the token whose unembedding is least similar to the answer's.

    `argmin_v cos(u_v, u_answer)` over the rows u of the unembedding matrix; for a set of answers, against its mean row.
    """
    rows = torch.nn.functional.normalize(context.unembedding.to(context.logits.dtype), dim=1)
    answers = torch.stack([rows[list(tokens)].mean(0) for tokens in context.answers])
    return TowardsTokens(_singles((answers @ rows.T).argmin(1)))


@wrong_answer("least_likely", sign=_AWAY)
def least_likely(context: LossContext) -> Target:
    """Cross-entropy towards the token with the lowest logit.

    `argmin_v logit_v`, of the same forward pass.
    """
    return TowardsTokens(_singles(context.logits.argmin(1)))


@wrong_answer("inverse_logits", sign=_AWAY)
def inverse_logits(context: LossContext) -> Target:
    """Cross-entropy towards `softmax(-logits)`.

    The prediction turned upside down: the less likely a token, the more it is asked for.
    """
    return TowardsDistribution(torch.softmax(-context.logits, 1))


@wrong_answer("semantic", needs_meaning=True, sign=_AWAY)
def semantic(context: LossContext) -> Target:
    """Cross-entropy towards the answer farthest in meaning, by a sentence-embedding model.

    `argmin_c cos(e_c, mean of e_a over the answers a)` over the embeddings e of all answers in the study's prompts of
    this task (Reimers and Gurevych 2019, arXiv 1908.10084); see `gbcd.wrong_answers.meaning`.
    """
    return TowardsTokens(context.farthest)


@wrong_answer("right_answer", sign="above zero a component works against the right answer, below zero for it")
def right_answer(context: LossContext) -> Target:
    """Cross-entropy towards the right answer: the control that every wrong answer must beat.

    `-log p(answer)`; for a set, of its total probability.
    """
    return TowardsTokens(context.answers)


def _singles(tokens: Tensor) -> list[TokenSet]:
    return [(int(token),) for token in tokens]
