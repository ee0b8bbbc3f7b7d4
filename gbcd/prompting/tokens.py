"""Text to tokens: encode prompts once, and refuse what cannot be studied before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput, listed
from gbcd.printing import counted
from gbcd.prompting.continuations import continuations
from gbcd.prompting.outputs import OutputAnswer, OutputSpace, output_answer, space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.special_tokens import Bos, text_ids

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


class Tokenised:
    """Prompts all of whose texts and answers are tokenised, which takes no lock of Python's; `encoded` checks them."""

    def __init__(
        self,
        prompts: Iterable[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        context: int | None = None,
        n_rows: int | None = None,
        bos: Bos = "auto",
    ) -> None:
        """Tokenise `prompts`; the arguments are those of `encode`.

        Raises:
            BadInput: something is wrong with the tokenizer.
        """
        self._prompts = prompts = list(prompts)
        texts = list(dict.fromkeys(text for prompt in prompts for text in _texts(prompt)))
        answers = list(dict.fromkeys(answer for prompt in prompts for answer in _answers(prompt)))
        self._texts = dict(zip(texts, text_ids(texts, tokenizer, bos), strict=True))
        cut = [] if space_of(tokenizer) is not None else continuations(answers, tokenizer)
        self._answers = {answer: one.ids for answer, one in zip(answers, cut, strict=bool(cut))}
        self._met: dict[tuple[str, ...], tuple[int, ...]] = {}
        self.tokenizer, self._context, self._n_rows = tokenizer, context, n_rows

    def encoded(self) -> list[EncodedPrompt]:
        """All of them.

        Raises:
            BadInput: lists all prompts that fail, with the reason and, for an answer, the tokens it splits into.
        """
        results = self.encoded_or_problem()
        encoded = [result for result in results if isinstance(result, EncodedPrompt)]
        if len(encoded) < len(results):
            pairs = zip(self._prompts, results, strict=True)
            problems = [f"{prompt.id}: {error}" for prompt, error in pairs if isinstance(error, BadInput)]
            raise BadInput(f"{counted(len(problems), 'prompt')} cannot be used:\n{listed(problems)}")
        return encoded

    def encoded_or_problem(self) -> list[EncodedPrompt | BadInput]:
        """Each prompt encoded, or why it cannot be."""
        space = space_of(self.tokenizer)
        results: list[EncodedPrompt | BadInput] = []
        for prompt in self._prompts:
            try:
                results.append(_encoded(prompt, self) if space is None else _encoded_outputs(prompt, self, space))
            except BadInput as error:
                results.append(error)
        return results

    def text(self, text: str, field: str) -> tuple[int, ...]:
        """The tokens of a prompt, twin or counterfactual."""
        ids = self._texts[text]
        if not ids or not text.strip():
            raise BadInput(f"{field}: it is empty")
        if self._context is not None and len(ids) > self._context:
            raise BadInput(f"{field}: it has {len(ids):,} tokens, more than the model's context of {self._context:,}")
        self._refuse_beyond(ids, field)
        return ids

    def optional(self, text: str | None, field: str) -> tuple[int, ...] | None:
        """The same, of a text that may be missing."""
        return None if text is None else self.text(text, field)

    def answers(self, answers: tuple[str, ...], field: str) -> tuple[int, ...]:
        """One token for each answer."""
        if (known := self._met.get(answers)) is not None:
            return known
        try:
            tokens = tuple(_one_token(answer, self._answers[answer], self.tokenizer) for answer in answers)
        except BadInput as error:
            raise BadInput(f"{field}: {error}") from error
        self._refuse_beyond(tokens, field)
        if len(set(tokens)) < len(tokens):
            raise BadInput(f"{field}: a token is named twice in {list(answers)}")
        self._met[answers] = tokens
        return tokens

    def _refuse_beyond(self, ids: Sequence[int], field: str) -> None:
        if self._n_rows is not None and (highest := max(ids, default=0)) >= self._n_rows:
            raise BadInput(
                f"{field}: it has token {self.tokenizer.convert_ids_to_tokens(highest)!r} (id {highest}), and the "
                f"embedding of the model ends at {self._n_rows - 1}: this tokenizer is not the model's"
            )


def encode(
    prompts: Iterable[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    context: int | None = None,
    n_rows: int | None = None,
    bos: Bos = "auto",
) -> list[EncodedPrompt]:
    """Encode `prompts` and check each: every answer one token, answer and wrong answers apart.

    Args:
        prompts: what to encode.
        tokenizer: of the model that reads them.
        context: longest sequence that the model takes, in tokens.
        n_rows: rows of the model's embedding.
        bos: whether a beginning-of-text token precedes each text; `auto`: as the tokenizer has it.

    Raises:
        BadInput: lists all prompts that fail, with the reason and, for an answer, the tokens it splits into; or says
            what is wrong with the tokenizer.
    """
    return Tokenised(prompts, tokenizer, context, n_rows, bos).encoded()


def _texts(prompt: Prompt) -> list[str]:
    return [text for text in (prompt.text, prompt.twin, prompt.counterfactual) if text is not None]


def _answers(prompt: Prompt) -> list[str]:
    return [*prompt.answers, *prompt.wrong_answers, *([] if prompt.farthest is None else [prompt.farthest])]


def _encoded(prompt: Prompt, reader: Tokenised) -> EncodedPrompt:
    right = reader.answers(prompt.answers, "answer")
    wrong = reader.answers(prompt.wrong_answers, "wrong_answer")
    if not right:
        raise BadInput("answer: there is none")
    if shared := set(right) & set(wrong):
        names = ", ".join(repr(reader.tokenizer.decode([token])) for token in sorted(shared))
        raise BadInput(f"wrong_answer: it is the answer: {names}")
    encoded = EncodedPrompt(
        prompt,
        reader.text(prompt.text, "prompt"),
        right,
        wrong,
        reader.optional(prompt.twin, "twin"),
        reader.optional(prompt.counterfactual, "counterfactual"),
        reader.answers(() if prompt.farthest is None else (prompt.farthest,), "farthest"),
    )
    if encoded.counterfactual_ids == encoded.ids:
        raise BadInput("counterfactual: it is the prompt itself; it must call for another answer")
    return encoded


def _encoded_outputs(prompt: Prompt, reader: Tokenised, space: OutputSpace) -> EncodedPrompt:
    if len(prompt.answers) != 1 or len(prompt.wrong_answers) > 1:
        raise BadInput("this model answers at every position: give one answer, and at most one wrong answer")
    if prompt.twin is not None or prompt.counterfactual is not None:
        raise BadInput("this model answers at every position, and has no use for a twin or counterfactual")
    ids = reader.text(prompt.text, "prompt")
    if reader.tokenizer.unk_token_id in ids:
        raise BadInput(f"prompt: {prompt.text!r} has a symbol that is not in the model's vocabulary")
    try:
        answer = output_answer(prompt.answers[0], next(iter(prompt.wrong_answers), None), len(ids) - 1, space)
    except BadInput as error:
        raise BadInput(f"answer: {error}") from error
    return EncodedPrompt(prompt, ids, (), (), None, None, outputs=answer)


def single_token(answer: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The one token of `answer` where it continues a prompt.

    Raises:
        BadInput: the answer is not one known token.
    """
    return _one_token(answer, continuations([answer], tokenizer)[0].ids, tokenizer)


def _one_token(answer: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    if len(ids) != 1:
        pieces = [token.replace("Ġ", " ").replace("▁", " ") for token in tokenizer.convert_ids_to_tokens(list(ids))]
        raise BadInput(f"answer {answer!r} is not one token but {pieces}")
    if ids[0] == tokenizer.unk_token_id and answer != tokenizer.unk_token:
        raise BadInput(f"answer {answer!r} is not in the model's vocabulary")
    return ids[0]
