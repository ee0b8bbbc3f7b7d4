r"""`gbcd show`: prompts as the model reads them.

    gbcd show ioi --model reference -n 5
    gbcd show tracr_reverse
    gbcd show --prompts FILE --model DIR

Tokens are set apart by bars, with a space of their own shown as it is and a line break as \n; numbers in brackets are
the model's probabilities. Lines wrap at the width of the window, never inside a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status, hush_libraries

if TYPE_CHECKING:
    from gbcd.commands.described_prompt import Line

#: Characters of the column of labels.
LABEL = 20

Task = Annotated[str | None, typer.Argument(metavar="TASK", help="Task to draw prompts from.")]
File = Annotated[str | None, typer.Option("--prompts", metavar="FILE", help="Or a file of your own.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="A hub name, a directory or a GGUF file; without it the task's own, or `reference`.",
    ),
]
Number = Annotated[int, typer.Option("-n", metavar="N", help="How many prompts.")]
Bos = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(
        "--bos", help="Whether a beginning-of-text token precedes each prompt; auto: as the tokenizer has it."
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Fixes which prompts are drawn.")]


def show(
    task: Task = None,
    prompts: File = None,
    model: Model = None,
    number: Number = 5,
    seed: Seed = 0,
    bos: Bos = "auto",
    definitions: options.Definitions = None,
    embedding_model: options.EmbeddingModel = None,
) -> None:
    """Print prompts as tokens, with answers, what the model predicts and what each wrong answer pulls towards."""
    with exit_status():
        hush_libraries()
        from gbcd.commands.described_prompt import chosen, default_model, described
        from gbcd.models import load as models
        from gbcd.run.own_definitions import import_definitions, read_definitions

        import_definitions(read_definitions(definitions or ()))
        loaded = models.load(model or default_model(task), "cpu")
        shown = chosen(loaded, task, prompts, number, seed, bos)
        print_prompts(described(shown, loaded, embedding_model, bos), console)


def print_prompts(prompts: Iterable[Sequence[Line]], console: Console) -> None:
    """Print the lines of prompts, with an empty one after each."""
    for lines in prompts:
        for label, pieces in lines:
            _print(label, pieces, console)
        console.print()


def _print(label: str, pieces: Sequence[str], console: Console) -> None:
    """Print a label with `pieces` beside it, as many a line as the window has room for; none is broken."""
    room = max(console.width - 1 - LABEL, 20)
    for number, line in enumerate(_filled(pieces, room)):
        text = Text.assemble((f"{'' if number else label:<{LABEL - 1}} ", "bold"), line)
        text.rstrip()
        console.print(text, soft_wrap=True)


def _filled(pieces: Sequence[str], room: int) -> Iterator[str]:
    line = ""
    for piece in pieces:
        if line and len(line) + len(piece.rstrip()) > room:
            yield line
            line = ""
        line += piece
    yield line
