"""Greater-Than on years (Hanna et al. 2023, arXiv 2305.00586)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

from gbcd.prompting import datasets
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family, Filled, Slot
from gbcd.tasks._registry import task

#: Two-digit ends of a start year that leave a later and an earlier end (Hanna et al. section 2).
FIRST, LAST = 2, 98
#: End of the counterfactual's start year: every other end but 00 is later (Hanna et al. section 3.1).
ANY_LATER = 1


@task("greater_than", metric="probability_difference", circuit="greater_than")
def greater_than(vocabulary: Vocabulary) -> Iterator[Family]:
    """The war lasted from 1517 to 15 -> any of 18, 19, ... 99, not 00, ... 17.

    Answers: the ends of all later years. Wrong answers: the ends of years that are not later, the start year's own
    included. Counterfactual: the start year ends in 01, so that nearly every end is later. Only years that the
    tokenizer cuts into century and end are used.
    """
    data = datasets.table("greater_than")
    ends = set(vocabulary.single([f"{end:02d}" for end in range(100)], "two-digit ends of years", 100, before=""))
    nouns = vocabulary.single(data["nouns"], "things that last")
    years = _split_years(vocabulary, data["centuries"], ends)
    for template, wording in data["templates"].items():
        yield Family(template, [Slot("noun", nouns), Slot("start", years)], partial(_fill, wording))


def _split_years(vocabulary: Vocabulary, centuries: list[int], ends: set[str]) -> list[str]:
    written = [f"{century}{end:02d}" for century in centuries for end in (ANY_LATER, *range(FIRST, LAST + 1))]
    cut = vocabulary.pieces([f" {year}" for year in written])
    split = {year for year, pieces in zip(written, cut, strict=True) if pieces == [f" {year[:2]}", year[2:]]}
    years = [year for year in written if {year, f"{year[:2]}{ANY_LATER:02d}"} <= split and int(year[2:]) >= FIRST]
    return vocabulary.enough(years, "years")


def _fill(wording: str, words: dict[str, str], rng: Random) -> Filled:
    century, end = words["start"][:2], int(words["start"][2:])
    return Filled(
        text=wording.format(century=century, **words),
        answers=tuple(f"{later:02d}" for later in range(end + 1, 100)),
        wrong_answers=tuple(f"{earlier:02d}" for earlier in range(end + 1)),
        counterfactual=wording.format(noun=words["noun"], start=f"{century}{ANY_LATER:02d}", century=century),
    )
