"""What is legal in prompts and rarely meant: counted while a study's prompts are encoded, and said before it runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt_shapes import TASK
from gbcd.prompting.tokens import EncodedPrompt

_MEANING = {
    "space": "end in a space: most tokenizers then expect an answer without one",
    "doubled": "begin with two beginning-of-text tokens: one in the text, one added (bos = 'never' adds none)",
    "joined": "do not go on with their answer as a token of its own: text and answer together are cut otherwise",
    "repeated": "occur more than once: they are kept, and count as often",
}


class Notes:
    """Counts prompts by what is unusual about them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._counts, self._total = tokenizer, Counter[str](), 0
        self._seen: set[bytes] = set()
        self._two_beginnings = (tokenizer.bos_token_id,) * 2

    def add(self, encoded: Sequence[EncodedPrompt]) -> None:
        """Look at some more prompts. Those that tasks draw are built to join with their answers, and are distinct."""
        if space_of(self._tokenizer) is not None:
            return
        self._total += len(encoded)
        self._counts["space"] += sum(one.prompt.text.endswith(" ") for one in encoded)
        self._counts["doubled"] += sum(one.ids[:2] == self._two_beginnings for one in encoded)
        own = [one for one in encoded if one.prompt.task == TASK]
        self._counts["joined"] += len(own) - sum(_joins(own, self._tokenizer))
        self._counts["repeated"] += sum(map(self._repeated, own))

    def sentences(self) -> list[str]:
        """One sentence for each kind, with the number of prompts."""
        return [
            f"{self._counts[kind]:,} of {self._total:,} prompts {said}"
            for kind, said in _MEANING.items()
            if self._counts[kind]
        ]

    def _repeated(self, one: EncodedPrompt) -> bool:
        key = hashlib.blake2b(one.prompt.text.encode(), digest_size=16).digest()
        known = key in self._seen
        self._seen.add(key)
        return known


def _joins(encoded: Sequence[EncodedPrompt], tokenizer: PreTrainedTokenizerBase) -> Iterator[bool]:
    """Whether each text with one of its answers behind it is cut into the text's tokens and the answer's."""
    if not encoded:
        return
    plain = tokenizer([one.prompt.text for one in encoded], add_special_tokens=False)["input_ids"]
    pairs = [one.prompt.text + answer for one in encoded for answer in one.prompt.answers]
    cut = iter(tokenizer(pairs, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    for one, text in zip(encoded, plain, strict=True):  # pyright: ignore[reportArgumentType]
        whole = [next(cut) for _ in one.answer_ids]
        yield any(ids == [*text, token] for ids, token in zip(whole, one.answer_ids, strict=True))
