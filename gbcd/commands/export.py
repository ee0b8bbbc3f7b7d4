"""`gbcd export`: circuits for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status
from gbcd.printing import fact

Mib = Annotated[
    Path, typer.Option("--mib", metavar="DIR", help="Write TASK_MODEL/importances.pt and .json, as EAP-IG and MIB do.")
]


def export(out: options.Results, mib: Mib) -> None:
    """Write the circuits of a study, with the scores of all edges, in the files of EAP-IG and MIB."""
    with exit_status():
        from gbcd.evaluation.mib import export as write

        for written in write(out, mib):
            fact(console, "Circuit", f"{written}/importances.pt, importances.json")
