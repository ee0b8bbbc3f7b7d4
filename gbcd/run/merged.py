"""Groups of shards that share their files, and the one view of what is committed, merged or not.

Shards next to each other in the plan form a group, always the same ones. `gbcd compact` (`compaction.py`) writes the
rows of a whole group into one file per table and then creates `merged/00003.json`, exclusively: from that moment
readers take the group's rows from there. The commit records of its shards stay: a second commit of one fails on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from gbcd.engine.tables import ShardTables
from gbcd.run.commits import Commit, committed_ids, read_commits, read_records, record_ids
from gbcd.run.shard_files import Contents
from gbcd.run.shards import Plan, StoredFile
from gbcd.run.store import Store

#: Prompts of a group. A file of as many rows is large enough to be read at full speed and small enough for memory.
GROUP_PROMPTS = 8192


class Merged(BaseModel):
    """The record that makes the files of a group those that count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: int
    attempt: str
    """Unique to the attempt that wrote the files."""
    files: dict[str, StoredFile]
    """`prompts`, `norms` and `coherence`: rows of the shards, one shard after the other."""
    commits: tuple[Commit, ...]
    """The records of the shards, whose own files are not read any more."""


class Piece(NamedTuple):
    """Files, and the shards whose rows they hold, in order."""

    files: dict[str, StoredFile]
    commits: tuple[Commit, ...]

    @property
    def shards(self) -> tuple[int, ...]:
        """Identifiers of the shards."""
        return tuple(commit.shard for commit in self.commits)


def groups(plan: Plan) -> dict[int, tuple[int, ...]]:
    """The shards of every group that has more than one."""
    n = max(1, GROUP_PROMPTS // plan.study.shard_size)
    ids = [shard.id for shard in plan.shards]
    cut = {number: tuple(ids[start : start + n]) for number, start in enumerate(range(0, len(ids), n))}
    return {number: shards for number, shards in cut.items() if len(shards) > 1}


def merged_path(group: int) -> str:
    """Where the record of a group lies."""
    return f"merged/{group:05d}.json"


def merged_ids(store: Store) -> set[int]:
    """Groups that are merged."""
    return record_ids(store, "merged")


def read_merged(store: Store, group: int) -> Piece | None:
    """The files of a group; None if it is not merged.

    Raises:
        StorageError: the record is damaged.
    """
    found = read_records(store, [merged_path(group)], Merged)
    return Piece(found[0].files, found[0].commits) if found else None


def read_pieces(store: Store) -> list[Piece]:
    """Everything that is committed, each shard once, in order of shard.

    Groups are read first: one that is merged meanwhile is seen as it was before, and the files of that are kept.

    Raises:
        StorageError: a record is damaged.
    """
    records = read_records(store, [merged_path(group) for group in sorted(merged_ids(store))], Merged)
    pieces = [Piece(record.files, record.commits) for record in records]
    covered = {shard for piece in pieces for shard in piece.shards}
    pieces += [Piece(commit.files, (commit,)) for commit in read_commits(store, committed_ids(store) - covered)]
    return sorted(pieces, key=lambda piece: piece.shards)


def shard_rows(piece: Piece, tables: ShardTables) -> Iterator[ShardTables]:
    """The tables of each shard of a piece, cut from those of the whole."""
    start = dict.fromkeys(Contents._fields, 0)
    for commit in piece.commits:
        rows = {kind: commit.files[kind].rows for kind in start}
        yield ShardTables(**{kind: table.slice(start[kind], rows[kind]) for kind, table in tables._asdict().items()})
        start = {kind: start[kind] + rows[kind] for kind in start}
