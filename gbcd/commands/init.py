"""`gbcd init`: a study file to start from, every choice written out with its default and what it means."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from pydantic import BaseModel

from gbcd.commands.terminal import console, exit_status
from gbcd.errors import BadInput
from gbcd.printing import fact
from gbcd.study import PROMPTS_PER_TASK, Compute, Study

File = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The file to write.")]

#: What the first study says.
FIRST = {"model": "reference", "tasks": ["ioi"], "prompts_per_task": PROMPTS_PER_TASK, "out": "results/first"}

#: What stands for a choice that has no default.
EXAMPLES = {
    "prompts": "my_prompts.jsonl",
    "wrong_answers": ["margin", "logit_difference"],
    "definitions": ["mine.py"],
    "statistics": ["grad_norm", "centered_grad_norm", "contrast_norm", "taylor", "mean_attribution", "attribution"],
    "neurons": ["m3"],
}


def init(file: File = Path("study.toml")) -> None:
    """Write a study file with every choice explained, ready to run."""
    with exit_status():
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(first_study(file))
        except FileExistsError:
            raise BadInput(f"{str(file)!r} is there already: give another name") from None
        except OSError as error:
            raise BadInput(f"{str(file)!r} cannot be written: {error.strerror}") from error
        fact(console, "Study", str(file))
        fact(console, "Next", f"gbcd run {quote(str(file))}")


def first_study(file: Path) -> str:
    """The text of the file, made from what the fields of a study say of themselves."""
    begin = f"# A study for `gbcd run {file}`. Lines that are commented out show the default, or an example.\n"
    return "\n".join([begin, *_choices(Study), "[compute]", *_choices(Compute)])


def _choices(table: type[BaseModel]) -> Iterator[str]:
    for name, field in table.model_fields.items():
        if name == "compute":
            continue
        for line in textwrap.wrap((field.description or "").replace("\n", " "), 118):
            yield f"# {line}"
        value = (FIRST | EXAMPLES).get(name, field.default)
        yield f"{'' if name in FIRST else '# '}{name} = {json.dumps(value)}\n"
