"""Where all commands print, and how errors become a message and an exit status.

0 done; 2 bad input, nothing written; 3 incomplete, and 130 interrupted: the message says what the same command does.
Colours and bars appear on a terminal only; `NO_COLOR` turns colours off.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.markup import escape

from gbcd.errors import BAD_INPUT, INCOMPLETE, INTERRUPTED, BadInput, Incomplete
from gbcd.printing import SafeConsole
from gbcd.run.store import StorageError

#: Exactly once rests on what file systems promise a POSIX program.
IS_WINDOWS = os.name == "nt"

#: Why a place that a person named cannot be written.
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)

console = SafeConsole(highlight=False)
errors = SafeConsole(stderr=True, highlight=False)

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows question marks
        _stream.reconfigure(errors="replace")


@contextmanager
def exit_status(resumes: bool = False) -> Generator[None]:
    """Turn what a reader can act on into a message and a status; anything else is a bug and shows its trace.

    Args:
        resumes: the same command goes on where it was; others begin again.
    """
    again = "The same command goes on from here." if resumes else "The same command begins again."
    try:
        if IS_WINDOWS:
            raise BadInput("gbcd does not run on Windows itself: run it in WSL, the Windows Subsystem for Linux")
        yield
    except BadInput as error:
        _fail("red", "error", str(error), BAD_INPUT)
    except (Incomplete, StorageError) as error:
        _fail("yellow", "incomplete", f"{error}\n{again}", INCOMPLETE)
    except OSError as error:
        if error.errno in _UNWRITABLE and error.filename:
            _fail("red", "error", f"{error.filename!r} cannot be written: {error.strerror}", BAD_INPUT)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered cannot be written either
        where = f" ({error.filename})" if error.filename else ""
        _fail(
            "yellow",
            "incomplete",
            f"no space is left{where}; TMPDIR says where temporary files go\n{again}",
            INCOMPLETE,
        )
    except KeyboardInterrupt:
        _fail("yellow", "interrupted", f"What is committed is kept. {again}", INTERRUPTED)


def hush_libraries() -> None:
    """Keep the bars and reports of libraries out of ours; also in the workers, which inherit the environment."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _fail(colour: str, word: str, text: str, code: int) -> None:
    errors.print(f"[bold {colour}]{word}:[/] {escape(text)}", soft_wrap=True)
    raise typer.Exit(code) from None
