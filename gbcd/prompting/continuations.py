"""Text as the continuation of other text, in tokens.

What follows a prompt must be cut as it is cut there. Tokenizers that put a space in front of every text by themselves
(Metaspace: Llama 2, Mistral, TinyLlama) cut `ley` alone as ` ley`, and some cut ` John` alone as two tokens. So a
continuation is tokenised behind a line break, which no tokenizer joins with a letter, a digit or a space, and the
tokens of the line break are taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

_BEFORE = "\n"


class Continuation(NamedTuple):
    """A text that continues another.

    Attributes:
        ids: its tokens.
        pieces: the text of each token; joined they are the whole.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]


def continuations(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Continuation]:
    """The tokens of each text where it continues another."""
    if not texts:
        return []
    before = _cut([_BEFORE], tokenizer)[0].ids
    behind = _cut([_BEFORE + text for text in texts], tokenizer)
    found = [
        Continuation(whole.ids[len(before) :], whole.pieces[len(before) :])
        if whole.ids[: len(before)] == before and "".join(whole.pieces[: len(before)]) == _BEFORE
        else None
        for whole in behind
    ]
    alone = iter(_cut([text for text, one in zip(texts, found, strict=True) if one is None], tokenizer))
    return [next(alone) if one is None else one for one in found]


def _cut(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Continuation]:
    """Tokens and their texts. A token's text ends where its offset ends; where it begins, tokenizers disagree."""
    if not texts:
        return []
    cut = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rows: list[Continuation] = []
    for text, ids, offsets in zip(texts, cut["input_ids"], cut["offset_mapping"], strict=True):  # pyright: ignore[reportArgumentType]
        ends = [0, *(end for _, end in offsets)]
        rows.append(Continuation(tuple(ids), tuple(text[a:b] for a, b in pairwise(ends))))
    return rows
