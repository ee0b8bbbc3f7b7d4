"""Texts by way of their words have the tokens that the library gives them whole, to the last one."""

from __future__ import annotations

from functools import cache

import pytest
from field_tokenizers import GROUPS_OF_THREE, SINGLE_DIGITS, field_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import small_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from gbcd import tasks
from gbcd.prompting import words
from gbcd.prompting.words import cuts_at_spaces, text_tokens

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
PIECES = [
    "Mary", "John", "the", "store,", "it's", "IT'S", "'Tis", "1987", "12", "x1y2", "-", "...", "a\tb", "é", "e\u0301",
    "Ω\n", "", "\u00a0", "\u2003x", "\0b", "<s>", "<s>x", "a<s>", "<pad>", "</s>", "(a,", "b)", "\n", "#!?", "日本",
]  # fmt: skip
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map(" ".join), max_size=8)


def byte_level_bpe(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """Byte-level BPE, whose merges would join words where its pre-tokenizer did not cut them apart."""
    merges = [
        ("y", "Ġ"), (",", "Ġ"), ("s", "Ġ"), ("h", "e"), ("t", "he"), ("Ġ", "the"), ("1", "9"), ("8", "7"), ("a", "r"),
        ("M", "ar"), ("Ġ", "M"), ("'", "s"), ("7", "Ġ"), ("Ġ", "1"), ("Ġ", "Ġ"), ("Ċ", "Ġ"), ("Ã", "©"), (".", "."),
    ]  # fmt: skip
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    made = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, merges))
    made.pre_tokenizer = pre_tokenizer
    made.add_special_tokens(["<s>"])
    made.add_tokens([AddedToken("<pad>", lstrip=True, rstrip=True), AddedToken("  ")])
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", made.token_to_id("<s>"))])
    return made


def by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def tokenizer(name: str) -> Tokenizer:
    """As models have them: pre-tokenizers of GPT-2, SmolLM2, Llama 3 and Qwen 2, and those of other tests."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pre = {
        "gpt2": gpt2,
        "prefixed": pre_tokenizers.ByteLevel(add_prefix_space=True),
        "smollm2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), gpt2]),
        "llama3": by_pattern(CONTRACTIONS + GROUPS_OF_THREE),
        "qwen2": by_pattern(CONTRACTIONS + SINGLE_DIGITS),
    }
    if name == "reference":
        return small_tokenizer().backend_tokenizer
    if name == "metaspace":
        return field_tokenizer("llama2").backend_tokenizer
    made = byte_level_bpe(pre[name])
    if name == "qwen2":
        made.normalizer = normalizers.NFC()
    return made


CUT = ("gpt2", "prefixed", "smollm2", "digits", "llama3", "qwen2", "reference")


@pytest.mark.parametrize("name", [*CUT, "metaspace"])
@given(texts=TEXTS)
def test_tokens_are_those_of_the_whole_text(name: str, texts: list[str]) -> None:
    backend = tokenizer(name)
    for adds in (True, False):
        whole = [tuple(one.ids) for one in backend.encode_batch_fast(texts, add_special_tokens=adds)]
        assert text_tokens(texts, backend, adds) == whole


@pytest.mark.parametrize("name", CUT)
def test_prompts_of_a_task_are_tokenised_word_by_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few words are given to the tokenizer, and no text."""
    prompts = tasks.draw("ioi", small_tokenizer(), 64, seed=0)
    texts = [text for one in prompts for text in (one.text, one.twin, one.counterfactual) if text is not None]
    expected, given = words._whole(texts, tokenizer(name), True), list[str]()
    whole = words._whole

    def counted(texts: list[str], backend: Tokenizer, adds: bool) -> list[tuple[int, ...]]:
        given.extend(texts)
        return whole(texts, backend, adds)

    monkeypatch.setattr(words, "_whole", counted)
    assert text_tokens(texts, tokenizer(name), True) == expected
    assert len(given) == len(set(given))
    assert not any(" " in one[1:] for one in given)


def test_other_tokenizers_are_given_whole_texts() -> None:
    assert not cuts_at_spaces(tokenizer("metaspace"))
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    joining = pre_tokenizers.Split(Regex(r"\p{L}+ \p{L}+|\s+"), behavior="isolated")
    gaps = pre_tokenizers.Split(Regex(r" ?\p{L}+"), behavior="isolated")
    removing = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    for unknown in (joining, gaps, removing, pre_tokenizers.Digits(), pre_tokenizers.Sequence([gpt2, joining])):
        assert not cuts_at_spaces(byte_level_bpe(unknown)), unknown
    changes = {
        "normalizer": normalizers.Replace("a ", "b"),
        "model": models.BPE({"a": 0}, [], dropout=0.5),
    }
    for field, value in changes.items():
        made = byte_level_bpe(gpt2)
        assert cuts_at_spaces(made)
        setattr(made, field, value)
        assert not cuts_at_spaces(made)
    for name in (" ", "New York"):
        made = byte_level_bpe(gpt2)
        made.add_tokens([name])
        assert not cuts_at_spaces(made)
