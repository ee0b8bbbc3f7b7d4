"""Tasks of compiled programs: every input that the model takes, with the program's own output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

from gbcd.prompting.outputs import OutputSpace
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family, Filled, Slot

Program = Callable[[Sequence[str]], str]


def every_input(vocabulary: Vocabulary, task: str, symbols: Sequence[str], program: Program) -> Iterator[Family]:
    """One family per length, whose prompts are all inputs of that length.

    Args:
        vocabulary: that of the compiled model.
        task: name of the task, which is that of its model.
        symbols: what the program reads.
        program: from an input to the right output, one value per position, separated by spaces.

    Raises:
        BadInput: the model is another one.
    """
    space = vocabulary.compiled(symbols, task)
    for length in range(1, vocabulary.longest):
        slots = [Slot(f"symbol{position}", symbols) for position in range(length)]
        yield Family(f"length {length}", slots, partial(_fill, program, space))


def _fill(program: Program, space: OutputSpace, words: dict[str, str], rng: Random) -> Filled:
    del rng
    answer = program(list(words.values()))
    return Filled(" ".join(words.values()), (answer,), (space.write(space.farthest(space.parse(answer))),))
