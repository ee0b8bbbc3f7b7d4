"""Definitions of the wrong answer that are not gbcd's own, tried on a few prompts before a study is planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd import wrong_answers
from gbcd.engine.engine import loss_context, loss_gradient, unchanged_weights
from gbcd.errors import BadInput, own_code
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.answer_logits import answer_logits
from gbcd.run.own_definitions import is_own
from gbcd.wrong_answers.losses import Target

#: How far from 1 a distribution may sum to.
SLACK = 1e-3


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
            raise BadInput(
                f"{what} returns a distribution with negative values, or whose sum is not 1: {sums.tolist()}"
            )
