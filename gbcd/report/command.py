"""`gbcd report`: the page, and figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gbcd.cli_options import Results
from gbcd.terminal import exit_status, say

Figures = Annotated[Path | None, typer.Option("--png", metavar="DIR", help="Also draw every figure as PNG, 300 dpi.")]


def report(out: Results, png: Figures = None) -> None:
    """Write what was found as one HTML file: heat maps, rankings, distributions, the circuit, the evaluation."""
    with exit_status():
        write(out, png)


def write(out: str, png: Path | None = None) -> None:
    """Write the reports of all parts of a study, and say where they lie."""
    from gbcd.job.parts import folders
    from gbcd.report.figures import write_figures
    from gbcd.report.page import write_report

    for folder in folders(out):
        say(f"Report:  {write_report(folder)}")
        if png is not None:
            figures = write_figures(folder, png)
            say(f"Figures: {png}, {len(figures)} files")
