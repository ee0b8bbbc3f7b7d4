"""Exactly once: how a shard becomes part of the results.

A worker writes the shard's tables to Parquet, reads them back and checks them, uploads them under names that no other
attempt shares, and then creates `commits/00012.json`, which names them with size, SHA-256 and rows. That creation is
the only moment that counts. It succeeds once per shard, so of two workers at the same shard (a zombie, a second
driver) one wins and the other removes its files. A process that dies earlier leaves files that nobody refers to;
one that dies later has committed. Readers go by the commit records and never by which files are there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from gbcd.run import failpoints
from gbcd.run.shard_files import ShardFiles, UnsoundShardError
from gbcd.run.shards import Shard, StoredFile
from gbcd.run.store import StorageError, Store

_RECORD = re.compile(r"\w+/(\d+)\.json")

#: Requests in flight while records are read; they are small and an object store answers slowly.
_READERS = 32

Record = TypeVar("Record", bound=BaseModel)


class Commit(BaseModel):
    """The record that makes a shard part of the results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: int
    attempt: str
    """Unique to the attempt that wrote the files."""
    files: dict[str, StoredFile]
    """`prompts`, `norms` and `coherence`."""
    n_prompts: int
    statuses: dict[str, int]
    """Rows of `prompts` (prompt and wrong answer) by status."""
    calibration: str
    """SHA-256 of the calibration that centred norms were taken against."""
    batch_size: int
    versions: dict[str, str]
    seconds: float
    committed_at: datetime


class Conditions(NamedTuple):
    """Under which a shard was computed; kept in its commit."""

    calibration: str
    batch_size: int
    versions: dict[str, str]


def publish(
    store: Store,
    shard: Shard,
    files: ShardFiles,
    conditions: Conditions,
    seconds: float,
    attempt: int,
    instead_of: Commit | None = None,
) -> Commit | None:
    """Upload the files of a shard and commit them.

    Args:
        store: where the results lie.
        shard: what was computed.
        files: the result, checked.
        conditions: for the record.
        seconds: how long the computation took.
        attempt: counts the tries at this shard in this run, from 1.
        instead_of: a commit without values for some prompts, which is taken back first. Its files stay, for readers
            that began before, until `gbcd compact` removes them.

    Returns:
        The commit, or None if another attempt had committed this shard before.

    Raises:
        StorageError: they cannot be written.
    """
    name = uuid4().hex
    stored = upload(store, f"{shard.id:05d}.{name}", files, shard.id, attempt)
    commit = Commit(
        shard=shard.id,
        attempt=name,
        files=stored,
        n_prompts=shard.n_prompts,
        statuses=files.statuses,
        seconds=round(seconds, 3),
        committed_at=datetime.now(UTC),
        **conditions._asdict(),
    )
    if instead_of is not None:
        store.delete(commit_path(shard.id))
    won = store.create(commit_path(shard.id), commit.model_dump_json(indent=1).encode())
    failpoints.reached("after_commit", shard.id, attempt)
    if not won:
        for file in stored.values():
            store.delete(file.path)
    return commit if won else None


def upload(store: Store, name: str, files: ShardFiles, number: int, attempt: int) -> dict[str, StoredFile]:
    """Write tables as `{kind}/{name}.parquet`, with nothing yet that refers to them.

    Args:
        store: where the results lie.
        name: shared by no other attempt.
        files: encoded and checked.
        number: of the shard, or of the group of shards, for failpoints.
        attempt: for failpoints.

    Raises:
        StorageError: they cannot be written.
    """
    data = files.contents._asdict()
    stored = {
        kind: StoredFile(
            path=f"{kind}/{name}.parquet", bytes=len(content), sha256=_sha256(content), rows=files.rows[kind]
        )
        for kind, content in data.items()
    }
    failpoints.reached("before_write", number, attempt)
    for kind, content in data.items():
        if failpoints.is_set("mid_file", number, attempt):
            store.write(stored[kind].path, content[: len(content) // 2])
        failpoints.reached("mid_file", number, attempt)
        store.write(stored[kind].path, content)
        if store.size(stored[kind].path) != len(content):
            raise StorageError(f"{store.location}/{stored[kind].path} is not there in full after it was written")
    failpoints.reached("after_file", number, attempt)
    return stored


def read_verified(store: Store, file: StoredFile) -> bytes:
    """The bytes of a file, as they were committed.

    Raises:
        UnsoundShardError: they are gone, or others.
        StorageError: they cannot be read now.
    """
    try:
        content = store.read(file.path)
    except FileNotFoundError:
        raise UnsoundShardError(f"{file.path} is gone") from None
    if len(content) != file.bytes:
        raise UnsoundShardError(f"{file.path} has {len(content)} bytes, committed with {file.bytes}")
    if _sha256(content) != file.sha256:
        raise UnsoundShardError(f"{file.path} does not have the checksum that it was committed with")
    return content


def commit_path(shard: int) -> str:
    """Where the commit record of a shard lies."""
    return f"commits/{shard:05d}.json"


def committed_ids(store: Store) -> set[int]:
    """Shards that are committed."""
    return record_ids(store, "commits")


def read_commits(store: Store, shards: Iterable[int] | None = None) -> list[Commit]:
    """Commit records, in order of shard; all of them, or those of `shards` that exist.

    Raises:
        StorageError: a record is damaged.
    """
    wanted = committed_ids(store) if shards is None else set(shards)
    return read_records(store, [commit_path(shard) for shard in sorted(wanted)], Commit)


def read_records(store: Store, paths: Iterable[str], kind: type[Record]) -> list[Record]:
    """The records at `paths`, in that order, without those that are not there.

    Raises:
        StorageError: one is damaged.
    """

    def one(path: str) -> Record | None:
        try:
            return kind.model_validate_json(store.read(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StorageError(
                f"{store.location}/{path} is damaged or not of this version; `gbcd verify --repair` computes it again"
            ) from error

    read: Callable[[str], Record | None] = one
    with ThreadPoolExecutor(_READERS) as pool:
        return [record for record in pool.map(read, paths) if record is not None]


def record_ids(store: Store, folder: str) -> set[int]:
    """Numbers of the records in `folder`."""
    names = (_RECORD.fullmatch(entry.path) for entry in store.list(folder))
    return {int(match.group(1)) for match in names if match}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
