"""The share of x so far (Lindner et al. 2023, arXiv 2301.05062, figure 2), by a compiled transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._compiled import every_input
from gbcd.tasks._families import Family
from gbcd.tasks._registry import task


@task(
    "tracr_xproportion",
    metric="mean_squared_error",
    circuit="tracr_xproportion",
    model="tracr_xproportion",
    is_finite=True,
)
def xproportion(vocabulary: Vocabulary) -> Iterator[Family]:
    """w x x y -> 0, 1/2, 2/3, 1/2: at each position the share of x among the symbols so far.

    Answer: these numbers. Wrong answer: at each position the end of the range, 0 or 1, that is farther from the right
    number. The prompts are all inputs of the model.
    """
    yield from every_input(vocabulary, "tracr_xproportion", ("w", "x", "y", "z"), _shares)


def _shares(symbols: Sequence[str]) -> str:
    return " ".join(repr(symbols[:n].count("x") / n) for n in range(1, len(symbols) + 1))
