"""Chooses words by how a model's tokenizer cuts them, so that the same data serve every tokenizer.

A circuit is studied on prompts whose answer is one token and whose positions line up from prompt to prompt. Which words
allow that depends on the tokenizer; a task therefore names its words and keeps those that fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput
from gbcd.prompting.continuations import continuations
from gbcd.prompting.outputs import OutputSpace, space_of


class Vocabulary:
    """What a tokenizer makes of words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap `tokenizer`; nothing is read until words are chosen."""
        self._tokenizer = tokenizer

    def compiled(self, symbols: Sequence[str], task: str) -> OutputSpace:
        """The outputs of a compiled model that reads exactly `symbols`.

        Raises:
            BadInput: the tokenizer is another model's.
        """
        space = space_of(self._tokenizer)
        read = set(self._tokenizer.get_vocab()) - set(self._tokenizer.all_special_tokens)
        if space is None or read != set(symbols):
            raise BadInput(
                f"task '{task}' is for the model that was compiled for it, over the symbols {' '.join(symbols)}: "
                f"choose it with --model {task}."
            )
        return space

    @property
    def longest(self) -> int:
        """Longest sequence, in tokens, that the tokenizer's model takes."""
        return self._tokenizer.model_max_length

    @property
    def name(self) -> str:
        """The tokenizer, for an error: where it was loaded from, else its class."""
        return self._tokenizer.name_or_path or type(self._tokenizer).__name__

    def pieces(self, texts: Sequence[str]) -> list[list[str]]:
        """Cut each text, as the continuation of another, into the texts of its tokens."""
        return [list(cut.pieces) for cut in continuations(texts, self._tokenizer)]

    def single(self, words: Iterable[str], what: str, at_least: int = 1, before: str = " ") -> list[str]:
        """Keep the words that are one token when `before` (a space) stands in front of them.

        Args:
            words: candidates.
            what: what they are, for the error ("first names").
            at_least: how many a prompt of the task needs.
            before: text that belongs to the token, in front of the word; a space, or nothing.

        Raises:
            BadInput: fewer than `at_least` words are left.
        """
        candidates = list(words)
        cut = continuations([before + word for word in candidates], self._tokenizer)
        unknown = self._tokenizer.unk_token_id
        kept = [word for word, one in zip(candidates, cut, strict=True) if len(one.ids) == 1 and one.ids[0] != unknown]
        return self.enough(kept, what, at_least)

    def enough(self, kept: list[str], what: str, at_least: int = 1) -> list[str]:
        """Return `kept`, or raise `BadInput` when fewer than `at_least` of `what` fit the tokenizer."""
        if len(kept) < at_least:
            raise BadInput(
                f"This task needs at least {at_least} {what} that the model's tokenizer cuts as the task needs, and "
                f"{len(kept)} of those in datasets/ are. Add such words there, or choose another model."
            )
        return kept
