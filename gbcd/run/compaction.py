"""`gbcd compact`: few large files in the place of many small ones, while anybody reads or writes.

The rows of a group of shards (`merged.py`) are read back and held against their sums, written to one file per table
under a name of its own, and become what readers see when `merged/00003.json` is created. As with a commit, that
creation is the only moment that counts, and it succeeds once: of two compactions one wins, and the other removes its
files. A process that dies earlier leaves files that nobody refers to.

Who had begun to read before goes on in the small files. So they stay, and a compaction that finds no group merged
within the last hour removes them, and the leavings of attempts that never committed. It removes nothing whose shard or
group has no record yet: whoever wrote that may be about to create it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

from gbcd.engine.tables import FAILED
from gbcd.run import failpoints
from gbcd.run.commits import committed_ids, read_commits, read_verified, upload
from gbcd.run.merged import Merged, groups, merged_ids, merged_path, read_pieces
from gbcd.run.shard_files import Contents, UnsoundShardError, decode, merge
from gbcd.run.shards import read_plan
from gbcd.run.store import Entry, StorageError, Store

#: How long files that no record names any more are kept for those who read by the records of before.
GRACE = timedelta(hours=1)

_FILE = re.compile(r"\w+/(?P<merged>merged-)?(?P<number>\d+)\.\w+\.parquet")


class Compaction(NamedTuple):
    """What was done.

    Attributes:
        groups: that are merged now and were not before.
        shards: whose rows these hold.
        removed: files that nobody reads any more.
        waiting: files that only those read who began before; a compaction an hour after the last merge removes them.
    """

    groups: int
    shards: int
    removed: int
    waiting: int


def compact(out: str) -> Compaction:
    """Merge the files of every group of `out` that is complete, and remove what was replaced long enough ago.

    Raises:
        BadInput: `out` holds no plan.
        StorageError: it cannot be read or written, or a committed file is damaged.
    """
    store = Store(out)
    plan = read_plan(store)
    removed = _sweep(store)
    done, there = committed_ids(store), merged_ids(store)
    ready = {group: shards for group, shards in groups(plan).items() if group not in there and done.issuperset(shards)}
    won = [len(shards) for group, shards in ready.items() if _merge(store, group, shards)]
    return Compaction(len(won), sum(won), removed, len(_unread(store)))


def _merge(store: Store, group: int, shards: tuple[int, ...]) -> bool:
    """Merge one group; False if somebody else did so before, or a shard in it waits to be computed again."""
    commits = read_commits(store, shards)
    if len(commits) < len(shards) or any(FAILED in commit.statuses for commit in commits):
        return False
    try:
        contents = [
            Contents(*(read_verified(store, commit.files[kind]) for kind in Contents._fields)) for commit in commits
        ]
        files = merge([decode(content) for content in contents])
    except UnsoundShardError as error:
        raise StorageError(f"{error}; `gbcd verify --repair {store.location}` computes it again") from error
    attempt = uuid4().hex
    stored = upload(store, f"merged-{group:05d}.{attempt}", files, group, 1)
    record = Merged(group=group, attempt=attempt, files=stored, commits=tuple(commits))
    won = store.create(merged_path(group), record.model_dump_json().encode())
    failpoints.reached("after_commit", group, 1)
    if not won:
        for file in stored.values():
            store.delete(file.path)
    return won


def _sweep(store: Store) -> int:
    """Remove what nobody can be reading; returns the number of files."""
    before = datetime.now(UTC) - GRACE
    if any(entry.modified > before for entry in store.list("merged")):
        return 0
    unread = [entry.path for entry in _unread(store) if entry.modified <= before]
    for path in unread:
        store.delete(path)
        failpoints.reached("mid_sweep", 0, 1)
    return len(unread)


def _unread(store: Store) -> list[Entry]:
    """Files that no record names, of shards and groups that have a record."""
    entries = [entry for kind in Contents._fields for entry in store.list(kind)]
    wanted = {file.path for piece in read_pieces(store) for file in piece.files.values()}
    shards, merged = committed_ids(store), merged_ids(store)
    unread: list[Entry] = []
    for entry in entries:
        match = _FILE.fullmatch(entry.path)
        if match and entry.path not in wanted and int(match["number"]) in (merged if match["merged"] else shards):
            unread.append(entry)
    return unread
