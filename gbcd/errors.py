"""The two errors a user meets, each with the exit status that the command line gives it.

`BadInput` is raised before any work starts and means that nothing was written. `Incomplete` means that
work was done, is kept, and that the same command goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence

DONE = 0
BAD_INPUT = 2
INCOMPLETE = 3
INTERRUPTED = 130

#: How many problems of a file are listed before the rest is only counted.
MAX_LISTED = 20


class BadInput(ValueError):
    """What was asked for cannot be done; the message says what was wrong, where, and what to do."""


class Incomplete(RuntimeError):
    """A run ended with work left over; the message says what is missing and how to go on."""


def listed(problems: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Join `problems`, one a line; past `limit` the rest is counted, so that a bad file cannot flood a terminal."""
    lines = list(problems[:limit])
    if len(problems) > limit:
        lines.append(f"... and {len(problems) - limit} more")
    return "\n".join(lines)
