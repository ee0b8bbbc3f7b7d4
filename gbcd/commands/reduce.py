"""`gbcd reduce`: from prompts to statistics per component."""

from __future__ import annotations

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status, say
from gbcd.printing import counted


def reduce(out: options.Results, score: options.Score = None) -> None:
    """Reduce what is committed to summary.parquet: statistics per component, ranked."""
    with exit_status():
        from gbcd.analysis.reduce import reduce as summarise
        from gbcd.commands.result_table import show_results

        summary = summarise(out, score)
        show_results(summary, console)
        say("Summary", f"{out}/summary.parquet, {counted(summary.height, 'row')}")
        say("Next", f"gbcd report {out}")
