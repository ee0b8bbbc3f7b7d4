"""The two errors a user meets, each with the exit status that the command line gives it.

`BadInput` is raised before any work starts and means that nothing was written. `Incomplete` means that
work was done, is kept, and that the same command goes on with it.
"""

from __future__ import annotations

import difflib
import inspect
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

BAD_INPUT = 2
INCOMPLETE = 3
INTERRUPTED = 130

#: How many problems of a file are listed before the rest is only counted.
MAX_LISTED = 20


class BadInput(ValueError):
    """What was asked for cannot be done; the message says what was wrong, where, and what to do."""


class Incomplete(RuntimeError):
    """A run ended with work left over; the message says what is missing and how to go on."""


def is_own(function: object) -> bool:
    """Whether a function is a researcher's, not gbcd's."""
    return function.__module__.split(".")[0] != "gbcd"


@contextmanager
def own_code(what: str, function: Callable[..., Any]) -> Generator[None]:
    """Say what went wrong in a researcher's own `function`, with file and line; faults of gbcd's own stay as they are.

    Raises:
        BadInput: names `what`, the file, the line and the fault.
    """
    try:
        yield
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        if not is_own(function):
            raise
        file = inspect.getsourcefile(inspect.unwrap(function)) or function.__module__
        raise BadInput(f"{what} ({place(error, file)}): {type(error).__name__}: {error}") from error


def place(error: BaseException, file: str) -> str:
    """Where in `file` the `error` arose: `mine.py, line 3`; the file alone where it arose in what that calls into."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return file if line is None else f"{file}, line {line}"


def listed(problems: Sequence[str]) -> str:
    """Join `problems`, one a line; beyond `MAX_LISTED` they are counted: a bad file must not flood a terminal."""
    more = [f"... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "\n".join([*problems[:MAX_LISTED], *more])


def near(name: str, known: Sequence[str]) -> str:
    """`; did you mean ioi?`, of what is `known`; nothing where nothing is like `name`."""
    matches = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
