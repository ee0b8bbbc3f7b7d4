"""What is asked of the model before a study is planned: whether it solves a prompt, and whether definitions run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd import wrong_answers
from gbcd.engine.engine import loss_context, loss_gradient, packed_for, unchanged_weights
from gbcd.engine.gram import widened
from gbcd.errors import BadInput, is_own, own_code
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.batches import groups
from gbcd.wrong_answers.losses import Target, set_logits

#: Sequences in a forward pass.
SEQUENCES = 64

#: How far from 1 a distribution may sum to.
SLACK = 1e-3


def answer_logits(loaded: LoadedModel, sequences: Sequence[tuple[int, ...]]) -> Float[Tensor, "prompt vocab"]:
    """Logits after the last token of each of `sequences`, in float32 or wider."""
    with torch.no_grad():
        return widened(loaded.decoder.run(packed_for(loaded, [(ids,) for ids in sequences])).logits[:, 0])


def solved(prompts: Sequence[EncodedPrompt], loaded: LoadedModel) -> list[bool]:
    """Which prompts the model solves: the answer is above the wrong answer, and below it in the twin.

    Without a wrong answer, the top token must be an answer. Of sets of tokens the total probability counts.
    """
    found: list[bool] = []
    for some in groups(prompts, SEQUENCES):
        right = _above(some, answer_logits(loaded, [one.ids for one in some]))
        twins = [one.twin_ids or one.ids for one in some]
        above = _above(some, answer_logits(loaded, twins)) if any(one.twin_ids for one in some) else right
        for one, is_right, is_above in zip(some, right, above, strict=True):
            found.append(is_right and not (is_above and one.twin_ids is not None and one.wrong_ids))
    return found


def _above(prompts: Sequence[EncodedPrompt], logits: Float[Tensor, "prompt vocab"]) -> list[bool]:
    right = set_logits(logits, [one.answer_ids for one in prompts])
    top = logits.argmax(1).tolist()
    wrong = set_logits(logits, [one.wrong_ids or one.answer_ids for one in prompts])
    return [
        margin > 0 if one.wrong_ids else token in one.answer_ids
        for one, margin, token in zip(prompts, (right - wrong).tolist(), top, strict=True)
    ]


def try_definitions(names: Sequence[str], prompts: Sequence[EncodedPrompt], loaded: LoadedModel) -> None:
    """Let those of the definitions `names` that are not gbcd's own choose once, and check what they choose.

    Raises:
        BadInput: the code of one fails, with the file and the line, or what it returns cannot be a target.
    """
    own = [definition for definition in map(wrong_answers.get, names) if is_own(definition.define)]
    if not own or space_of(loaded.tokenizer) is not None:
        return
    logits = answer_logits(loaded, [prompt.ids for prompt in prompts])
    for definition in own:
        what = f"wrong answer {definition.name!r}"
        with own_code(what, definition.define):
            context = loss_context(prompts, logits.clone(), loaded)
            with unchanged_weights(definition, context):
                target = definition.define(context)
            _refuse_nonsense(what, target, len(prompts), loaded.n_tokens or loaded.vocabulary_size, logits)
            losses = target(logits.unsqueeze(1).double())
            if losses.shape != (len(prompts),):
                raise BadInput(f"{what}: its loss has {losses.numel()} values for {len(prompts)} prompts")
            if not losses.isfinite().all():
                raise BadInput(f"{what}: its loss is {losses.tolist()} on the first prompts")
            loss_gradient(target, logits.unsqueeze(1))


def _refuse_nonsense(
    what: str, target: Any, n_prompts: int, n_tokens: int, logits: Float[Tensor, "prompt vocab"]
) -> None:
    if not isinstance(target, Target):
        raise BadInput(f"{what} returns {type(target).__name__}; wanted is a target of gbcd.wrong_answers.losses")
    if target.tokens is not None:
        if len(target.tokens) != n_prompts:
            raise BadInput(f"{what} returns {len(target.tokens)} sets of tokens for {n_prompts} prompts")
        for tokens in target.tokens:
            if not tokens or not all(0 <= token < n_tokens for token in tokens):
                raise BadInput(f"{what} returns the tokens {tuple(tokens)}; the tokenizer has 0 to {n_tokens - 1}")
    probabilities = getattr(target, "probabilities", None)
    if isinstance(probabilities, Tensor):
        if probabilities.shape != logits.shape:
            raise BadInput(
                f"{what} returns a distribution of shape {tuple(probabilities.shape)}, not {tuple(logits.shape)}"
            )
        sums = probabilities.double().sum(1)
        if bool((probabilities < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=SLACK):
            found = ", ".join(f"{one:.5f}" for one in sums.tolist())
            raise BadInput(f"{what} returns a distribution with negative values, or whose sum is not 1: {found}")
