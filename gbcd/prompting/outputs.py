"""Answers of models that give an output at every position: a number, or one symbol of a few.

A language model is asked for one token at the end of a prompt. A compiled RASP program (`gbcd/tracr/`) answers at every
position but the first, which holds BOS. In a `Prompt` such an answer is one text with a value per position, separated
by spaces: `3 2 1`, `0.0 0.5 0.333`. The tokenizer of such a model carries the space that its outputs lie in, since what
is farthest from a value can be said only within that space; a tokenizer without one belongs to a language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput

#: Under this name a tokenizer's configuration holds the output space, as `dataclasses.asdict` gives it.
SPACE_KEY = "output_space"


@dataclass(frozen=True, slots=True)
class OutputAnswer:
    """Right and wrong outputs of one prompt, a value per position after BOS: a number, or the index of a symbol.

    `wrong` is empty where the prompt names no wrong answer.
    """

    right: tuple[float, ...]
    wrong: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OutputSpace:
    """What a model can answer at a position.

    Attributes:
        symbols: the symbols, one per coordinate of the output, in their own order; empty for a number.
        low, high: smallest and largest value over all inputs of the model; of a number only.
    """

    symbols: tuple[str, ...]
    low: float = 0.0
    high: float = 0.0

    @property
    def kind(self) -> str:
        """`sequence` (of symbols) or `number`; as refusals call it."""
        return "sequence" if self.symbols else "number"

    @property
    def width(self) -> int:
        """Coordinates of the output at a position."""
        return max(len(self.symbols), 1)

    def parse(self, text: str) -> tuple[float, ...]:
        """The values that `text` writes, one per position.

        Raises:
            BadInput: something that is not an output of this model.
        """
        words = text.split()
        if self.symbols:
            if unknown := [word for word in words if word not in self.symbols]:
                raise BadInput(f"{unknown[0]!r} is no output of this model; its outputs are {', '.join(self.symbols)}")
            return tuple(float(self.symbols.index(word)) for word in words)
        try:
            return tuple(float(word) for word in words)
        except ValueError as error:
            raise BadInput(f"answer {text!r} is not a sequence of numbers") from error

    def write(self, values: tuple[float, ...]) -> str:
        """The text that `parse` reads."""
        return " ".join(self.symbols[int(value)] if self.symbols else repr(float(value)) for value in values)

    def farthest(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The output farthest from each value within the space; from the middle, the upper end.

        Symbols are as far apart as their places in the list: as coordinates all of them are equally far.
        """
        low, high = (0.0, len(self.symbols) - 1.0) if self.symbols else (self.low, self.high)
        return tuple(high if high - value >= value - low else low for value in values)


def space_of(tokenizer: PreTrainedTokenizerBase) -> OutputSpace | None:
    """The output space that `tokenizer` carries; None for a language model's."""
    stored: dict[str, Any] | None = tokenizer.init_kwargs.get(SPACE_KEY)
    return None if stored is None else OutputSpace(tuple(stored["symbols"]), stored["low"], stored["high"])


def output_answer(right: str, wrong: str | None, n_positions: int, space: OutputSpace) -> OutputAnswer:
    """Read the answers of a prompt with `n_positions` positions after BOS.

    Raises:
        BadInput: values that the model cannot give, too few or too many, or a wrong answer equal to the right one.
    """
    answer = OutputAnswer(space.parse(right), () if wrong is None else space.parse(wrong))
    for name, values in (("answer", answer.right), ("wrong answer", answer.wrong)):
        if len(values) != n_positions and (name == "answer" or wrong is not None):
            raise BadInput(f"{name} has {len(values)} values, and the prompt has {n_positions} positions after BOS")
    if answer.right == answer.wrong:
        raise BadInput(f"answer and wrong answer are the same: {right}")
    return answer
