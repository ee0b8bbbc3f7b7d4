"""Builds the reference model's tokenizer from the words and templates under `datasets/`.

Text is cut before words, numbers and punctuation as GPT-2 cuts it, with two differences: digits go in pairs (" 15",
"17"), so that every year splits into century and end, and a word is then cut into the fewest pieces of the vocabulary
(a unigram model whose pieces all cost the same). The vocabulary is the 256 bytes, all one- and two-digit numbers, and
every word of the data; surnames are there only as head and tail (" Durs", "ley"). Any text can be written, in bytes
where no word fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gbcd.prompting import datasets

END_OF_TEXT = "<|endoftext|>"
WORD = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TABLES = ("ioi", "greater_than", "docstring", "induction", "filler")


def build_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """The tokenizer for a model that reads `context` tokens."""
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    cut = [piece for text in _texts() for piece, _ in pre_tokenizer.pre_tokenize_str(text)]
    pieces = dict.fromkeys([END_OF_TEXT, *letters, *cut])
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces]))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _texts() -> Iterator[str]:
    """Every text whose pieces become tokens, in a fixed order."""
    for number in range(100):
        yield from (f"{number:02d}", f" {number:02d}")
        if number < 10:
            yield from (str(number), f" {number}")
    for name in ("names", "places", "objects", "words"):
        yield from _both_forms(datasets.words(name), bare=name == "names")
    tables = {name: datasets.table(name) for name in TABLES}
    yield from _both_forms(tables["greater_than"]["nouns"], bare=False)
    yield from _both_forms(tables["docstring"]["functions"] + tables["docstring"]["parameters"], bare=True)
    yield from _both_forms(tables["induction"]["surname_heads"], bare=True)
    yield from tables["induction"]["surname_tails"]
    for table in tables.values():
        yield from (piece for wording in _wordings(table) for piece in re.split(r" ?\{\w+\}", wording) if piece)


def _both_forms(words: list[str], bare: bool) -> Iterator[str]:
    """Each word as it stands within a sentence and, if `bare`, as it stands at the start of one."""
    for word in words:
        yield f" {word}"
        if bare:
            yield word


def _wordings(table: dict[str, Any]) -> list[str]:
    return [*table.get("templates", {}).values(), *table.get("sentences", [])]
