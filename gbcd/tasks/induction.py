"""Induction: what followed this token before (Olsson et al. 2022, arXiv 2209.11895), on words and on surnames."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

from gbcd.prompting import datasets
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family, Filled, Slot, others
from gbcd.tasks._registry import task

#: Marks the cut between the two tokens of a surname.
CUT = "|"


@task("induction", metric="negative_log_probability", circuit="induction")
def induction(vocabulary: Vocabulary) -> Iterator[Family]:
    """Random words repeated: cat pen sea oak cat pen -> sea; surnames repeated: Vernon Dursley ... Petunia Durs -> ley.

    Answer: the token that followed the last one before. Wrong answer: one that followed another token of the text.
    Twin: the last token becomes that other one, so that the two trade places. Counterfactual: the first mention of
    the last token and of the answer becomes something else, so that nothing repeats there.
    """
    data = datasets.table("induction")
    random_words = vocabulary.single(datasets.words("words"), "words", at_least=max(max(data["blocks"])) + 2)
    for block, repeated in data["blocks"]:
        slots = [Slot(" ".join(f"w{place}" for place in range(block)), random_words)]
        yield Family(f"words_{block}_{repeated}", slots, partial(_fill_words, random_words, repeated))
    first_names = vocabulary.single(datasets.words("names"), "first names", at_least=3)
    surnames = _two_token_surnames(vocabulary, data["surname_heads"], data["surname_tails"])
    for template, wording in data["templates"].items():
        slots = [Slot("one two three", first_names), Slot("known", surnames)]
        yield Family(template, slots, partial(_fill_surname, wording, surnames))


def _fill_words(random_words: list[str], answer_at: int, words: dict[str, str], rng: Random) -> Filled:
    first = list(words.values())
    again, answer = first[:answer_at], first[answer_at]
    wrong_at = rng.choice([place for place in range(1, len(first)) if place != answer_at])
    broken = first.copy()
    broken[answer_at - 1 : answer_at + 1] = others(random_words, first, 2, rng)
    return Filled(
        text=_joined(first + again),
        answers=(f" {answer}",),
        wrong_answers=(f" {first[wrong_at]}",),
        twin=_joined([*first, *again[:-1], first[wrong_at - 1]]),
        counterfactual=_joined(broken + again),
    )


def _joined(words: list[str]) -> str:
    return "".join(f" {word}" for word in words)


def _two_token_surnames(vocabulary: Vocabulary, heads: list[str], tails: list[str]) -> list[str]:
    written = [head + tail for head in heads for tail in tails]
    cut = vocabulary.pieces([f" {surname}" for surname in written])
    kept = [CUT.join(pieces) for pieces in cut if len(pieces) == 2]
    alone = vocabulary.pieces([surname.partition(CUT)[0] for surname in kept])
    kept = [surname for surname, pieces in zip(kept, alone, strict=True) if pieces == [surname.partition(CUT)[0]]]
    return vocabulary.enough([surname.strip() for surname in kept if surname[0] == " "], "surnames of two tokens", 10)


def _fill_surname(wording: str, surnames: list[str], words: dict[str, str], rng: Random) -> Filled:
    known = words["known"]
    other = _unlike([known], surnames, rng)
    third = _unlike([known, other], surnames, rng)
    piece, answer = known.split(CUT)
    other_piece, wrong = other.split(CUT)
    plain = words | {"known": known.replace(CUT, ""), "other": other.replace(CUT, "")}
    return Filled(
        text=wording.format(piece=piece, **plain),
        answers=(answer,),
        wrong_answers=(wrong,),
        twin=wording.format(piece=other_piece, **plain),
        counterfactual=wording.format(piece=piece, **plain | {"known": third.replace(CUT, "")}),
    )


def _unlike(taken: list[str], surnames: list[str], rng: Random) -> str:
    """A surname that shares neither token with those in `taken`: a shared one would leave two right answers."""
    pieces = {piece for surname in taken for piece in surname.split(CUT)}
    while True:
        surname = rng.choice(surnames)
        if pieces.isdisjoint(surname.split(CUT)):
            return surname
