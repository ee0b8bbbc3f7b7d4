"""Batches of like lengths, cut from a study's order of prompts.

The shuffled prompts of a task are taken in windows of `WINDOW` batches. Within a window they are ordered by length, so
that a batch needs little padding, and cut into batches. A window is a random draw from the task, and what follows from
the order alone does not depend on shards or workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from gbcd.prompting.tokens import EncodedPrompt

T = TypeVar("T")

#: Batches in a window.
WINDOW = 32


class Placed(NamedTuple):
    """A prompt, and its place in the shuffled order of its task."""

    place: int
    prompt: EncodedPrompt


def by_length(prompts: Iterable[EncodedPrompt], batch_size: int) -> Iterator[Placed]:
    """The `prompts` of one task, window by window in order of length; every `batch_size` of them are a batch."""
    for window in groups(map(Placed._make, enumerate(prompts)), WINDOW * batch_size):
        yield from sorted(window, key=lambda placed: (_length(placed.prompt), placed.place))


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`size` items at a time; the last group may be smaller."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def _length(prompt: EncodedPrompt) -> int:
    return max(len(ids) for ids in (prompt.ids, prompt.twin_ids, prompt.reference_ids) if ids is not None)
