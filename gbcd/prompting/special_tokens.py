"""Tokens that a tokenizer puts around every text: which they are, and which of them a study keeps."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gbcd.errors import BadInput
from gbcd.prompting.words import text_tokens

Bos = Literal["auto", "always", "never"]

_PROBE = "a"


class Added(NamedTuple):
    """Tokens in front of every text and behind it."""

    front: tuple[int, ...]
    behind: tuple[int, ...]


def added(tokenizer: PreTrainedTokenizerBase) -> Added:
    """What the tokenizer adds by itself."""
    plain = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(_PROBE)["input_ids"]
    assert isinstance(plain, list)
    assert isinstance(whole, list)
    start = next((at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain), len(whole))
    return Added(tuple(whole[:start]), tuple(whole[start + len(plain) :]))


def text_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, bos: Bos) -> list[tuple[int, ...]]:
    """The tokens of each text, with the beginning of text that `bos` asks for.

    `auto` adds what the tokenizer adds, `always` its beginning-of-text token, `never` nothing.

    Raises:
        BadInput: the tokenizer ends every text with a token of its own, or has no beginning of text to add.
    """
    if not texts:
        return []
    if bos == "auto":
        _refuse_end_of_text(tokenizer)
    adds = bos == "auto"
    tokenizer(texts[:1], add_special_tokens=adds)  # by which the library sets up the backend: nothing is cut or padded
    ids = text_tokens(texts, cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer, adds)
    if bos != "always":
        return ids
    first = tokenizer.bos_token_id
    if not isinstance(first, int):
        raise BadInput('bos = "always" was asked for, and the tokenizer has no beginning-of-text token')
    return [row if row[:1] == (first,) else (first, *row) for row in ids]


def described(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> str:
    """What is added under `bos`, in words: `'<s>' in front`."""
    if bos == "never":
        return "none"
    if bos == "always":
        return f"{tokenizer.bos_token!r} in front"
    front = added(tokenizer).front
    return f"{', '.join(map(repr, tokenizer.convert_ids_to_tokens(list(front))))} in front" if front else "none"


def _refuse_end_of_text(tokenizer: PreTrainedTokenizerBase) -> None:
    if behind := added(tokenizer).behind:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(list(behind))))
        raise BadInput(
            f"the tokenizer ends every text with {names}, and the answer would be read behind it: set bos = 'always' "
            "or 'never' in the study"
        )
