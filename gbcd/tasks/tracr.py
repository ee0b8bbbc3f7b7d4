"""Tasks of compiled programs (Lindner et al. 2023, arXiv 2301.05062): every input, with what the program answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

from gbcd.prompting.outputs import OutputSpace
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family, Filled, Slot
from gbcd.tasks._registry import task

Program = Callable[[Sequence[str]], str]
"""From an input to the right output, one value per position, separated by spaces."""


@task("tracr_reverse", "mean_squared_error", "tracr_reverse", model="tracr_reverse", is_finite=True)
def reverse(vocabulary: Vocabulary) -> Iterator[Family]:
    """1 2 3 -> 3 2 1: the symbols in reverse order.

    Answer: the reversed sequence. Wrong answer: at each position the symbol farthest from the right one in the order
    of the vocabulary. The prompts are all inputs of the model.
    """
    yield from _every_input(vocabulary, "tracr_reverse", ("1", "2", "3"), _reversed)


@task("tracr_xproportion", "mean_squared_error", "tracr_xproportion", model="tracr_xproportion", is_finite=True)
def xproportion(vocabulary: Vocabulary) -> Iterator[Family]:
    """w x x y -> 0, 1/2, 2/3, 1/2: at each position the share of x among the symbols so far (figure 2 of the paper).

    Answer: these numbers. Wrong answer: at each position the end of the range, 0 or 1, that is farther from the right
    number. The prompts are all inputs of the model.
    """
    yield from _every_input(vocabulary, "tracr_xproportion", ("w", "x", "y", "z"), _shares)


def _reversed(symbols: Sequence[str]) -> str:
    return " ".join(reversed(symbols))


def _shares(symbols: Sequence[str]) -> str:
    return " ".join(repr(symbols[:n].count("x") / n) for n in range(1, len(symbols) + 1))


def _every_input(vocabulary: Vocabulary, task: str, symbols: Sequence[str], program: Program) -> Iterator[Family]:
    """One family per length, whose prompts are all inputs of that length, of the model of `task` over `symbols`."""
    space = vocabulary.compiled(symbols, task)
    for length in range(1, vocabulary.longest):
        slots = [Slot(f"symbol{position}", symbols) for position in range(length)]
        yield Family(f"length {length}", slots, partial(_fill, program, space))


def _fill(program: Program, space: OutputSpace, words: dict[str, str], rng: Random) -> Filled:
    del rng
    answer = program(list(words.values()))
    return Filled(" ".join(words.values()), (answer,), (space.write(space.farthest(space.parse(answer))),))
