"""The space of a task's prompts, indexed: prompt number i is built on demand, so that millions cost nothing.

A *family* is one template with its slots. A slot takes one word, or several different ones, from a list; the size of
a family is the product over its slots, exactly, and an index names one choice of words (mixed radix; arrangements of
different words are unranked one by one). Two indices never give the same words, so prompts drawn by index without
repetition are distinct. What the prompt needs besides its text (a third name for the counterfactual, say) comes from
a random generator seeded by the family's name and the index.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple


class Filled(NamedTuple):
    """One prompt as a task writes it; the fields are those of `gbcd.prompting.prompt.Prompt`."""

    text: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...] = ()
    twin: str | None = None
    counterfactual: str | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """Places of a template that are filled from one list, with different words.

    Attributes:
        names: names of the places, separated by spaces, for example `first second`.
        words: what may stand there.
        places: the names, one by one.
        size: number of ways to fill the places: n (n - 1) ... for n words.
    """

    names: str
    words: Sequence[str]
    places: tuple[str, ...] = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the ways once: they are asked for with every prompt."""
        object.__setattr__(self, "places", tuple(self.names.split()))
        object.__setattr__(self, "size", math.perm(len(self.words), len(self.places)))

    def at(self, index: int) -> dict[str, str]:
        """The way numbered `index` (0 <= index < size), as name of the place -> word."""
        taken: list[int] = []
        values: dict[str, str] = {}
        for name in self.places:
            index, choice = divmod(index, len(self.words) - len(taken))
            for earlier in taken:
                choice += choice >= earlier
            insort(taken, choice)
            values[name] = self.words[choice]
        return values


@dataclass(frozen=True, slots=True)
class Family:
    """One template with its slots.

    Attributes:
        template: name of the wording, which prompts carry and statistics are clustered by.
        slots: what may vary.
        fill: makes the prompt of one choice of words; the generator is for words that are not slots.
    """

    template: str
    slots: Sequence[Slot]
    fill: Callable[[dict[str, str], Random], Filled]

    @property
    def size(self) -> int:
        """Number of distinct prompts."""
        return math.prod(slot.size for slot in self.slots)

    def at(self, index: int) -> Filled:
        """The prompt numbered `index` (0 <= index < size)."""
        rng = Random(f"{self.template}/{index}")
        values: dict[str, str] = {}
        for slot in self.slots:
            index, choice = divmod(index, slot.size)
            values |= slot.at(choice)
        return self.fill(values, rng)


def others(words: Sequence[str], taken: Sequence[str], count: int, rng: Random) -> list[str]:
    """Choose `count` different words of `words` that are not in `taken`."""
    chosen: list[str] = []
    while len(chosen) < count:
        word = rng.choice(words)
        if word not in taken and word not in chosen:
            chosen.append(word)
    return chosen
