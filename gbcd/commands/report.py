"""`gbcd report`: the page, and figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gbcd.commands.options import Results
from gbcd.commands.terminal import exit_status, say
from gbcd.printing import counted

Figures = Annotated[Path | None, typer.Option("--png", metavar="DIR", help="Also draw every figure as PNG, 300 dpi.")]


def report(out: Results, png: Figures = None) -> None:
    """Write what was found as one HTML file: heat maps, rankings, distributions, the circuit, the evaluation."""
    with exit_status():
        write(out, png)


def write(out: str, png: Path | None = None) -> None:
    """Write the report of a study, say where it lies and what it warns of.

    Raises:
        BadInput: there is no study, or nothing of it was reduced.
    """
    from gbcd.report.page import write_figures, write_report

    written = write_report(out)
    for warning in written.warnings:
        say("Warning", warning)
    say("Report", written.location)
    if png is not None:
        figures = write_figures(out, png)
        say("Figures", f"{png}, {counted(len(figures), 'file')}")
