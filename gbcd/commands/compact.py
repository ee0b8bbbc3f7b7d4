"""`gbcd compact`: few large files in the place of many small ones."""

from __future__ import annotations

from gbcd.commands import options
from gbcd.commands.terminal import exit_status, say
from gbcd.printing import counted
from gbcd.run.parts import folders


def compact(out: options.Results) -> None:
    """Merge small files into larger ones, also while others read or write; removes replaced ones after an hour."""
    with exit_status(resumes=True):
        from gbcd.run.compaction import compact as merge

        for folder in folders(out):
            done = merge(folder)
            say("Merged", f"{counted(done.shards, 'shard')} into {counted(done.groups, 'file')} of each table")
            if done.removed:
                say("Removed", counted(done.removed, "file"))
            if done.waiting:
                say("Kept", f"{counted(done.waiting, 'replaced file')}, for an hour, for whoever reads them now")
