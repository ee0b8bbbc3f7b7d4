"""Greater-Than on years (Hanna et al. 2023, arXiv 2305.00586), for each way in which tokenizers spell numbers.

The answer is one token, so what a prompt leaves open depends on how its tokenizer cuts 1732:

| spelling | tokenizers | prompt ends | answers | wrong answers |
|---|---|---|---|---|
| pairs, 17-32 | GPT-2, OPT, Pythia (some years), the reference model | ... 1732 to 17 | 33 ... 99 | 00 ... 32 |
| single digits, 1-7-3-2 | SmolLM2, Qwen, Gemma, Llama 2, Mistral | ... 1732 to 17 | 4 ... 9 | 0 ... 2 |
| groups of three, 173-2 | Llama 3 | ... 1732 to 173 | 3 ... 9 | 0 ... 2 |

With single digits the start year's own third digit is in neither set: whether the year is later, the digit after it
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import NamedTuple

from gbcd.errors import BadInput
from gbcd.prompting import datasets
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family, Filled, Slot
from gbcd.tasks._registry import task

#: End of the counterfactual's start year: nearly every other end is later (Hanna et al. section 3.1).
ANY_LATER = "01"


class Spelling(NamedTuple):
    """How a tokenizer cuts a year, and what a prompt then asks for.

    Attributes:
        name: in words.
        cuts: the pieces of a year of four digits.
        given: digits of the end year that the prompt holds.
        ends: what may follow them, each one token.
        right: ends that make the year later than the start year.
        wrong: ends that do not.
    """

    name: str
    cuts: Callable[[str], list[str]]
    given: int
    ends: list[str]
    right: Callable[[str], list[str]]
    wrong: Callable[[str], list[str]]


def _digits(start: int, stop: int) -> list[str]:
    return [str(digit) for digit in range(start, stop)]


def _ends(start: int, stop: int) -> list[str]:
    return [f"{end:02d}" for end in range(start, stop)]


SPELLINGS = (
    Spelling(
        "in pairs (17-32)",
        lambda year: [year[:2], year[2:]],
        2,
        _ends(0, 100),
        lambda year: _ends(int(year[2:]) + 1, 100),
        lambda year: _ends(0, int(year[2:]) + 1),
    ),
    Spelling(
        "digit by digit (1-7-3-2)",
        list,
        2,
        _digits(0, 10),
        lambda year: _digits(int(year[2]) + 1, 10),
        lambda year: _digits(0, int(year[2])),
    ),
    Spelling(
        "in groups of three (173-2)",
        lambda year: [year[:3], year[3:]],
        3,
        _digits(0, 10),
        lambda year: _digits(int(year[3]) + 1, 10),
        lambda year: _digits(0, int(year[3]) + 1),
    ),
)


@task("greater_than", metric="probability_difference", circuit="greater_than")
def greater_than(vocabulary: Vocabulary) -> Iterator[Family]:
    """The war lasted from 1517 to 15 -> any of 18, 19, ... 99, not 00, ... 17.

    Answers: the ends of all later years. Wrong answers: the ends of years that are not later. For a tokenizer with
    single digits or groups of three an end is one digit (see `gbcd/tasks/greater_than.py`). Counterfactual: the start
    year ends in 01, so that nearly every end is later. Only years that the tokenizer cuts as the others are used.
    """
    data = datasets.table("greater_than")
    nouns = vocabulary.single(data["nouns"], "things that last")
    spelling, years = _spelled(
        vocabulary, [f"{century}{end}" for century in data["centuries"] for end in _ends(0, 100)]
    )
    vocabulary.single(spelling.ends, "ends of years", len(spelling.ends), before="")
    for template, wording in data["templates"].items():
        yield Family(template, [Slot("noun", nouns), Slot("start", years)], partial(_fill, wording, spelling))


def _spelled(vocabulary: Vocabulary, written: list[str]) -> tuple[Spelling, list[str]]:
    """How most years are cut, and the years with an earlier and a later end that are cut so, 01 of the century too.

    Raises:
        BadInput: in none of the ways above.
    """
    cut = dict(zip(written, _digits_of_tokens(vocabulary, written), strict=True))
    by_spelling = [[year for year in written if cut[year] == one.cuts(year)] for one in SPELLINGS]
    spelling, cut_so = max(zip(SPELLINGS, by_spelling, strict=True), key=lambda pair: len(pair[1]))
    years = [
        year
        for year in cut_so
        if spelling.right(year) and spelling.wrong(year) and f"{year[:2]}{ANY_LATER}" in cut_so and year[2:] > ANY_LATER
    ]
    if not years:
        [shown] = _digits_of_tokens(vocabulary, ["1732"])
        raise BadInput(
            f"Greater-Than needs a tokenizer that spells years {', '.join(one.name for one in SPELLINGS)}; that of "
            f"this model ({vocabulary.name}) cuts 1732 into {'-'.join(shown)}. Choose another task."
        )
    return spelling, years


def _digits_of_tokens(vocabulary: Vocabulary, years: list[str]) -> list[list[str]]:
    """The digits of each token of each year; a space in front may belong to the first or be a token of its own."""
    return [
        [piece.strip() for piece in pieces if piece.strip()]
        for pieces in vocabulary.pieces([f" {year}" for year in years])
    ]


def _fill(wording: str, spelling: Spelling, words: dict[str, str], rng: Random) -> Filled:
    start, noun = words["start"], words["noun"]
    begun = start[: spelling.given]
    return Filled(
        text=wording.format(noun=noun, start=start, century=begun),
        answers=tuple(spelling.right(start)),
        wrong_answers=tuple(spelling.wrong(start)),
        counterfactual=wording.format(noun=noun, start=f"{start[:2]}{ANY_LATER}", century=begun),
    )
