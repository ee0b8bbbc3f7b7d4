"""What of an evaluation is done, for whoever waits: it takes minutes where a run takes seconds."""

from __future__ import annotations

from collections.abc import Callable

#: Told of a step: what it is, how much of it is done, and how much there is (prompts times what is run on them).
Watch = Callable[[str, int, int], None]


def unwatched(step: str, done: int, total: int) -> None:
    """Nobody waits."""


def of_task(watch: Watch, task: str) -> Watch:
    """Name the task with every step."""
    return lambda step, done, total: watch(f"{task}: {step}", done, total)
