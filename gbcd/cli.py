"""The command line: a table of contents. The commands are functions in `commands/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import typer

from gbcd.commands.compile_tracr import compile_tracr
from gbcd.commands.doctor import doctor
from gbcd.commands.evaluate import evaluate
from gbcd.commands.init import init
from gbcd.commands.list import list_
from gbcd.commands.report import export, reduce, report
from gbcd.commands.run import plan, run
from gbcd.commands.show import show
from gbcd.commands.status import status, verify

app = typer.Typer(
    help="Which attention heads and MLPs carry a behaviour: attributions and gradient norms of every component, over "
    "thousands of prompts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Command(NamedTuple):
    """A command, as it is asked for, and what its help shows as an example."""

    name: str
    does: Callable[..., None]
    example: str


CHAPTERS = {
    "Start here": [
        Command("init", init, "study.toml"),
        Command("doctor", doctor, "--model reference --out results"),
        Command("list", list_, "tasks"),
        Command("show", show, "ioi --model reference -n 5"),
    ],
    "Run a study": [
        Command("run", run, "--task ioi --model reference --prompts 2000 --out results/ioi"),
        Command("plan", plan, "jobs/studies/ioi.toml --out results/ioi"),
        Command("status", status, "results/ioi"),
        Command("verify", verify, "results/ioi --repair"),
    ],
    "Read what it found": [
        Command("reduce", reduce, "results/ioi"),
        Command("evaluate", evaluate, "results/ioi"),
        Command("export", export, "results/ioi --mib circuits"),
        Command("report", report, "results/ioi --png figures"),
    ],
    "Models": [
        Command(
            "compile-tracr",
            compile_tracr,
            'gbcd.tracr.programs:reverse --vocab "1 2 3" --max-length 5 --out reverse',
        ),
    ],
}

for chapter, commands in CHAPTERS.items():
    for command in commands:
        example = f"Example: gbcd {command.name} {command.example}"
        app.command(command.name, epilog=example, rich_help_panel=chapter)(command.does)
