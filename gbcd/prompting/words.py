"""Texts to tokens by way of their words: prompts of a task share nearly all of them, so each is tokenised once.

A text of words of printable ASCII with one space between any two is cut in front of every space, whatever the words,
where a tokenizer's pre-tokenizer is one of those named here (GPT-2's, and the patterns of Llama 3 and Qwen 2):
every alternative of its patterns takes a space as the first character of what it matches or not at all, `\\s+` takes
one that no other does, and none looks beyond the next space. What lies between two cuts is tokenised by itself, so the
tokens of the text are those of its first word and of each other word with the space in front. All other texts, and all
texts of other tokenizers (Metaspace: Llama 2, Gemma), are tokenised whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

#: Alternatives of patterns that texts are cut by.
_ALTERNATIVES = {
    r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?\p{N}+", r" ?\p{N}{1,2}", r"\p{N}{1,3}", r"\p{N}", r"\s+",
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
}  # fmt: skip

#: Marks the first word of a text; no word has a space of its own.
_FIRST = " "

#: Normalisers that leave ASCII as it is.
_NORMALISERS = {"NFC", "NFD", "NFKC", "NFKD"}


def text_tokens(texts: Sequence[str], backend: Tokenizer, adds: bool) -> list[tuple[int, ...]]:
    """The tokens of each text; `adds` says whether with those that the tokenizer puts in front of every text."""
    if not cuts_at_spaces(backend):
        return _whole(texts, backend, adds)
    words = [text.split(" ") for text in texts]
    for of in words:
        of[0] = _FIRST + of[0]
    different, special = set(chain.from_iterable(words)), _added(backend)
    unfit = {word for word in different if not _is_fit(word.removeprefix(_FIRST)) or special.search(word)}
    first = {word for word in different if word.startswith(_FIRST)}
    tokens = _by_word(first - unfit, True, adds, backend)
    tokens |= _by_word(different - first - unfit, False, False, backend)
    if not unfit:
        return [tuple(chain.from_iterable(map(tokens.__getitem__, of))) for of in words]
    is_fit = [unfit.isdisjoint(of) for of in words]
    whole = iter(_whole([text for text, fits in zip(texts, is_fit, strict=True) if not fits], backend, adds))
    return [
        tuple(chain.from_iterable(map(tokens.__getitem__, of))) if fits else next(whole)
        for of, fits in zip(words, is_fit, strict=True)
    ]


def cuts_at_spaces(backend: Tokenizer) -> bool:
    """Whether the tokenizer is known to cut such texts in front of every space, and always alike."""
    normaliser, steps = _state(backend.normalizer), _steps(_state(backend.pre_tokenizer))
    if not (normaliser is None or normaliser["type"] in _NORMALISERS) or getattr(backend.model, "dropout", None):
        return False
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    if any(" " in token.strip() or token == " " for token in added):
        return False
    return any(map(_cuts, steps)) and all(_cuts(step) or step["type"] in ("ByteLevel", "Digits") for step in steps)


def _cuts(step: dict[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer cuts in front of every space."""
    if step["type"] != "Split":
        return step["type"] == "ByteLevel" and step["use_regex"]
    pattern = step["pattern"].get("Regex", "")
    endings = re.match(r"\(\?i:[^)]*\)", pattern)
    rest = pattern[endings.end() + 1 :] if endings else pattern
    alternatives = {*rest.split("|"), *([endings[0]] if endings else [])}
    is_plain = step["behavior"] == "Isolated" and not step["invert"]
    return is_plain and r"\s+" in alternatives and alternatives <= _ALTERNATIVES


def _steps(state: dict[str, Any] | None) -> list[dict[str, Any]]:
    if state is None:
        return []
    return state["pretokenizers"] if state["type"] == "Sequence" else [state]


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def _is_fit(word: str) -> bool:
    return word.isascii() and word.isprintable() and word != ""


def _added(backend: Tokenizer) -> re.Pattern[str]:
    """Finds the tokens that are cut out of a text before anything else."""
    names = [token.content.strip() for token in backend.get_added_tokens_decoder().values()]
    return re.compile("|".join(re.escape(name) for name in names if name) or r"(?!)")


def _by_word(words: set[str], is_first: bool, adds: bool, backend: Tokenizer) -> dict[str, tuple[int, ...]]:
    found = list(words)
    texts = [word.removeprefix(_FIRST) if is_first else f" {word}" for word in found]
    return dict(zip(found, _whole(texts, backend, adds), strict=True))


def _whole(texts: Sequence[str], backend: Tokenizer, adds: bool) -> list[tuple[int, ...]]:
    return [tuple(one.ids) for one in backend.encode_batch_fast(list(texts), add_special_tokens=adds)]
