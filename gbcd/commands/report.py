"""What is written from the committed shards: `gbcd reduce`, `gbcd report`, and `gbcd export`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status
from gbcd.printing import counted, fact

Figures = Annotated[Path | None, typer.Option("--png", metavar="DIR", help="Also draw every figure as PNG, 300 dpi.")]
Mib = Annotated[
    Path, typer.Option("--mib", metavar="DIR", help="Write TASK_MODEL/importances.pt and .json, as EAP-IG and MIB do.")
]


def reduce(out: options.Results, score: options.Score = None) -> None:
    """Reduce what is committed to summary.parquet: statistics per component, ranked."""
    with exit_status():
        from gbcd.analysis.reduce import reduce as summarise
        from gbcd.commands.closing import show_results

        summary = summarise(out, score)
        show_results(summary, console)
        fact(console, "Summary", f"{out}/summary.parquet, {counted(summary.height, 'row')}")
        fact(console, "Next", f"gbcd report {out}")


def report(out: options.Results, png: Figures = None) -> None:
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
        fact(console, "Warning", warning)
    fact(console, "Report", written.location)
    if png is not None:
        figures = write_figures(out, png)
        fact(console, "Figures", f"{png}, {counted(len(figures), 'file')}")


def export(out: options.Results, mib: Mib) -> None:
    """Write the circuits of a study, with the scores of all edges, in the files of EAP-IG and MIB."""
    with exit_status():
        from gbcd.evaluation.mib import export as write_circuits

        written = write_circuits(out, mib)
        for folder in written:
            fact(console, "Circuit", f"{folder}/importances.pt, importances.json")
        fact(console, "Next", f"gbcd evaluate {quote(out)} --circuit {quote(f'{written[0]}/importances.pt')}")
