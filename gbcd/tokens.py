"""Text to tokens: encode prompts once, and refuse what cannot be studied before any work starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput, listed
from gbcd.prompts import Prompt


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt with its token ids; the loss reads the logits at the last position of `ids` (and of `twin_ids`)."""

    prompt: Prompt
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    wrong_ids: tuple[int, ...]
    twin_ids: tuple[int, ...] | None
    counterfactual_ids: tuple[int, ...] | None


def encode(
    prompts: Iterable[Prompt], tokenizer: PreTrainedTokenizerBase, context: int | None = None
) -> list[EncodedPrompt]:
    """Encode `prompts`, checking each: every answer one token, answer and wrong answers apart, not beyond `context`.

    Raises:
        BadInput: lists all prompts that fail, with the reason and, for an answer, the tokens it splits into.
    """
    encoded: list[EncodedPrompt] = []
    problems: list[str] = []
    for prompt in prompts:
        try:
            encoded.append(_encode_one(prompt, tokenizer, context))
        except BadInput as error:
            problems.append(f"{prompt.id}: {error}")
    if problems:
        raise BadInput(f"{len(problems)} prompts cannot be used:\n{listed(problems)}")
    return encoded


def _encode_one(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, context: int | None) -> EncodedPrompt:
    answers = tuple(single_token(answer, tokenizer) for answer in prompt.answers)
    wrong = tuple(single_token(answer, tokenizer) for answer in prompt.wrong_answers)
    if not answers:
        raise BadInput("there is no answer")
    if shared := set(answers) & set(wrong):
        names = ", ".join(repr(tokenizer.decode([token])) for token in sorted(shared))
        raise BadInput(f"answer and wrong answer are the same token: {names}")
    return EncodedPrompt(
        prompt,
        _text_ids(prompt.text, "prompt", tokenizer, context),
        answers,
        wrong,
        None if prompt.twin is None else _text_ids(prompt.twin, "twin", tokenizer, context),
        None
        if prompt.counterfactual is None
        else _text_ids(prompt.counterfactual, "counterfactual", tokenizer, context),
    )


def single_token(answer: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The one token of `answer`.

    Raises:
        BadInput: the answer is not one known token.
    """
    ids: list[int] = tokenizer.encode(answer, add_special_tokens=False)
    if len(ids) != 1:
        raise BadInput(f"answer {answer!r} is not one token but {tokenizer.convert_ids_to_tokens(ids)}")
    if ids[0] == tokenizer.unk_token_id and answer != tokenizer.unk_token:
        raise BadInput(f"answer {answer!r} is not in the model's vocabulary")
    return ids[0]


def _text_ids(text: str, field: str, tokenizer: PreTrainedTokenizerBase, context: int | None) -> tuple[int, ...]:
    ids: list[int] = tokenizer.encode(text)
    if not ids:
        raise BadInput(f"{field} is empty")
    if context is not None and len(ids) > context:
        raise BadInput(f"{field} has {len(ids)} tokens, more than the model's context of {context}")
    return tuple(ids)
