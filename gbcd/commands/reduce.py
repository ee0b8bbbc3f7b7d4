"""`gbcd reduce`: from prompts to statistics per component."""

from __future__ import annotations

from gbcd.commands import options
from gbcd.commands.terminal import exit_status, say
from gbcd.printing import counted
from gbcd.run.parts import folders


def reduce(out: options.Results) -> None:
    """Reduce what is committed to summary.parquet: statistics per component, ranked."""
    with exit_status():
        from gbcd.analysis.reduce import reduce as summarise

        for folder in folders(out):
            say("Summary", f"{folder}/summary.parquet, {counted(summarise(folder).height, 'row')}")
        say("Next", f"gbcd report {out}")
