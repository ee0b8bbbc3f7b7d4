"""A sequence in reverse (Lindner et al. 2023, arXiv 2301.05062), by a compiled transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._compiled import every_input
from gbcd.tasks._families import Family
from gbcd.tasks._registry import task


@task("tracr_reverse", metric="mean_squared_error", circuit="tracr_reverse", model="tracr_reverse", is_finite=True)
def reverse(vocabulary: Vocabulary) -> Iterator[Family]:
    """1 2 3 -> 3 2 1: the symbols in reverse order.

    Answer: the reversed sequence. Wrong answer: at each position the symbol farthest from the right one in the order
    of the vocabulary. The prompts are all inputs of the model.
    """
    yield from every_input(vocabulary, "tracr_reverse", ("1", "2", "3"), _reversed)


def _reversed(symbols: Sequence[str]) -> str:
    return " ".join(reversed(symbols))
