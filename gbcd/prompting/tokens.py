"""Text to tokens: encode prompts once, and refuse what cannot be studied before any work starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput, listed
from gbcd.prompting.outputs import OutputAnswer, OutputSpace, output_answer, space_of
from gbcd.prompting.prompt import Prompt

Reference = Literal["counterfactual", "partner", "none"]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt with its token ids; the loss reads the logits at the last position of `ids` (and of `twin_ids`).

    Attributes:
        prompt: the text.
        ids: its tokens.
        answer_ids: one token for each right answer.
        wrong_ids: one token for each of the task's own wrong answers.
        twin_ids: tokens of the twin; None where there is none.
        counterfactual_ids: tokens of the counterfactual, which may be longer or shorter; None where there is none.
        partner_ids: tokens of the partner, as many as `ids`; None where none was drawn.
        farthest_ids: the token of the answer farthest in meaning; empty where no study asked for it.
        outputs: the answers of a model that answers at every position, which has no tokens of answers.
        partner_id: `Prompt.id` of the partner.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    wrong_ids: tuple[int, ...]
    twin_ids: tuple[int, ...] | None
    counterfactual_ids: tuple[int, ...] | None
    farthest_ids: tuple[int, ...] = ()
    outputs: OutputAnswer | None = None
    partner_ids: tuple[int, ...] | None = None
    partner_id: str | None = None

    @property
    def reference(self) -> Reference:
        """What the prompt is compared with: its counterfactual where that has as many tokens, else its partner."""
        if self.counterfactual_ids is not None and len(self.counterfactual_ids) == len(self.ids):
            return "counterfactual"
        return "none" if self.partner_ids is None else "partner"

    @property
    def reference_ids(self) -> tuple[int, ...] | None:
        """Tokens of `reference`, as many as `ids`; None where there is no reference."""
        return self.counterfactual_ids if self.reference == "counterfactual" else self.partner_ids


def encode(
    prompts: Iterable[Prompt], tokenizer: PreTrainedTokenizerBase, context: int | None = None
) -> list[EncodedPrompt]:
    """Encode `prompts`, checking each: every answer one token, answer and wrong answers apart, not beyond `context`.

    Raises:
        BadInput: lists all prompts that fail, with the reason and, for an answer, the tokens it splits into.
    """
    prompts = list(prompts)
    texts = _ids([text for prompt in prompts for text in _texts(prompt)], tokenizer, special=True)
    answers = _ids([answer for p in prompts for answer in (*p.answers, *p.wrong_answers)], tokenizer, special=False)
    space = space_of(tokenizer)
    encoded: list[EncodedPrompt] = []
    problems: list[str] = []
    for prompt in prompts:
        try:
            if space is None:
                encoded.append(_encode_one(prompt, texts, answers, tokenizer, context))
            else:
                encoded.append(_encode_for_outputs(prompt, texts, space, tokenizer, context))
        except BadInput as error:
            problems.append(f"{prompt.id}: {error}")
    if problems:
        raise BadInput(f"{len(problems)} prompts cannot be used:\n{listed(problems)}")
    return encoded


def _texts(prompt: Prompt) -> list[str]:
    return [text for text in (prompt.text, prompt.twin, prompt.counterfactual) if text is not None]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> dict[str, list[int]]:
    """Tokens of each text. In one call: the library's overhead per call is many times the work on a short text."""
    distinct = list(dict.fromkeys(texts))
    return (
        dict(zip(distinct, tokenizer(distinct, add_special_tokens=special)["input_ids"], strict=True)) if texts else {}
    )


def _encode_one(
    prompt: Prompt,
    texts: dict[str, list[int]],
    answers: dict[str, list[int]],
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
) -> EncodedPrompt:
    right = tuple(_one_token(answer, answers[answer], tokenizer) for answer in prompt.answers)
    wrong = tuple(_one_token(answer, answers[answer], tokenizer) for answer in prompt.wrong_answers)
    if not right:
        raise BadInput("there is no answer")
    if shared := set(right) & set(wrong):
        names = ", ".join(repr(tokenizer.decode([token])) for token in sorted(shared))
        raise BadInput(f"answer and wrong answer are the same token: {names}")

    def checked(text: str | None, field: str) -> tuple[int, ...] | None:
        return None if text is None else _checked_length(texts[text], field, context)

    return EncodedPrompt(
        prompt,
        _checked_length(texts[prompt.text], "prompt", context),
        right,
        wrong,
        checked(prompt.twin, "twin"),
        checked(prompt.counterfactual, "counterfactual"),
        () if prompt.farthest is None else (single_token(prompt.farthest, tokenizer),),
    )


def _encode_for_outputs(
    prompt: Prompt,
    texts: dict[str, list[int]],
    space: OutputSpace,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
) -> EncodedPrompt:
    if len(prompt.answers) != 1 or len(prompt.wrong_answers) > 1:
        raise BadInput("this model answers at every position: give one answer, and at most one wrong answer")
    if prompt.twin is not None or prompt.counterfactual is not None:
        raise BadInput("this model answers at every position, and has no use for a twin or counterfactual")
    ids = _checked_length(texts[prompt.text], "prompt", context)
    if tokenizer.unk_token_id in ids:
        raise BadInput(f"prompt {prompt.text!r} has a symbol that is not in the model's vocabulary")
    answer = output_answer(prompt.answers[0], next(iter(prompt.wrong_answers), None), len(ids) - 1, space)
    return EncodedPrompt(prompt, ids, (), (), None, None, outputs=answer)


def single_token(answer: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The one token of `answer`.

    Raises:
        BadInput: the answer is not one known token.
    """
    return _one_token(answer, tokenizer.encode(answer, add_special_tokens=False), tokenizer)


def _one_token(answer: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    if len(ids) != 1:
        raise BadInput(f"answer {answer!r} is not one token but {tokenizer.convert_ids_to_tokens(ids)}")
    if ids[0] == tokenizer.unk_token_id and answer != tokenizer.unk_token:
        raise BadInput(f"answer {answer!r} is not in the model's vocabulary")
    return ids[0]


def _checked_length(ids: list[int], field: str, context: int | None) -> tuple[int, ...]:
    if not ids:
        raise BadInput(f"{field} is empty")
    if context is not None and len(ids) > context:
        raise BadInput(f"{field} has {len(ids)} tokens, more than the model's context of {context}")
    return tuple(ids)
