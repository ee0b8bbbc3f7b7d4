"""Where all commands print, and how errors become a message and an exit status.

0 done; 2 bad input, nothing written; 3 incomplete, the same command goes on; 130 interrupted, the same command goes on.
Colours and bars appear on a terminal only; `NO_COLOR` turns colours off.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from gbcd import printing
from gbcd.errors import BAD_INPUT, INCOMPLETE, INTERRUPTED, BadInput, Incomplete
from gbcd.job.store import StorageError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


@contextmanager
def exit_status() -> Generator[None]:
    """Turn what a reader can act on into a message and a status; anything else is a bug and shows its trace."""
    try:
        yield
    except BadInput as error:
        _fail("red", "error", str(error), BAD_INPUT)
    except (Incomplete, StorageError) as error:
        _fail("yellow", "incomplete", f"{error}\nThe same command goes on from here.", INCOMPLETE)
    except KeyboardInterrupt:
        kept = "what is committed is kept; the same command goes on from here."
        _fail("yellow", "interrupted", kept, INTERRUPTED)


def say(label: str, text: str) -> None:
    """Print one finding, with its label in the left column."""
    printing.fact(console, label, text)


def hush_libraries() -> None:
    """Keep transformers' progress bars out of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _fail(colour: str, word: str, text: str, code: int) -> None:
    errors.print(f"[bold {colour}]{word}:[/] {escape(text)}", soft_wrap=True)
    raise typer.Exit(code) from None
