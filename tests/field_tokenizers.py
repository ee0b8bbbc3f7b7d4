"""Tokenizers that cut text as those of well-known models do, over the words of datasets/."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from training import tokenizer as reference

GROUPS_OF_THREE = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SINGLE_DIGITS = GROUPS_OF_THREE.replace("{1,3}", "")

#: How they spell numbers: Qwen one digit a token, Llama 3 three; Llama 2 puts a space in front of every text.
FIELD = ("qwen", "llama3", "llama2")


@lru_cache
def field_tokenizer(name: str, **special: str) -> PreTrainedTokenizerFast:
    """One of `FIELD`; `special` names tokens, a `bos_token` is put in front of every text."""
    made = _metaspace() if name == "llama2" else _byte_level(GROUPS_OF_THREE if name == "llama3" else SINGLE_DIGITS)
    made.add_special_tokens(["<s>", "</s>"])
    template = "<s> $A" if name == "llama2" else "$A"
    made.post_processor = processors.TemplateProcessing(template, None, [("<s>", made.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _words() -> list[str]:
    """Every text of the datasets that is one word, with the space that it has there."""
    return [text for text in reference._texts() if not any(letter.isdigit() for letter in text)]  # pyright: ignore


def _unigram(pieces: list[str], **options: bool) -> Tokenizer:
    return Tokenizer(
        models.Unigram([(piece, -1.0) for piece in dict.fromkeys(["<unk>", *pieces])], unk_id=0, **options)
    )


def _byte_level(pattern: str) -> Tokenizer:
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    numbers = [str(number) for number in range(1000)] + [f"{number:03d}" for number in range(100)]
    texts = [*_words(), *numbers]
    pieces = [piece for text in texts for piece, _ in cut.pre_tokenize_str(text)]
    made = _unigram([*sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces])
    made.pre_tokenizer = cut
    made.decoder = decoders.ByteLevel()
    return made


def _metaspace() -> Tokenizer:
    spaced = [piece.replace(" ", "▁") for text in _words() for piece, _ in _cut_words(text)]
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [chr(code) for code in range(33, 127)]
    made = _unigram(["▁", *byte_names, *letters, *spaced], byte_fallback=True)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def _cut_words(text: str) -> list[tuple[str, tuple[int, int]]]:
    return pre_tokenizers.Split(Regex(SINGLE_DIGITS), behavior="isolated").pre_tokenize_str(text)
