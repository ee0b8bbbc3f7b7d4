"""Exactly once: how a shard becomes part of the results.

A worker writes the shard's tables to Parquet, reads them back, uploads them under names that no other attempt shares,
and then creates `commits/00012.json`, which names them with size, SHA-256 and rows. That creation is the only moment
that counts. It succeeds once per shard, so of two workers at the same shard (a zombie, a second driver) one wins and
the other removes its files; a commit is never replaced. A process that dies earlier leaves orphaned files; one that
dies later has committed. Readers go by the commit records and never by which files are there.

Floats are split by byte (`BYTE_STREAM_SPLIT`) and everything is compressed with zstd; every page carries a checksum.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from shlex import quote
from typing import Any, TypeVar, cast
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from gbcd.errors import BadInput
from gbcd.run.shards import Record, StoredFile
from gbcd.run.store import StorageError, Store
from gbcd.run.work import Tables, UnsoundShardError

_RECORD = re.compile(r"\w+/(\d+)\.json")

#: Requests in flight while records are read; they are small and an object store answers slowly.
_READERS = 32

Kind = TypeVar("Kind", bound=BaseModel)


class Commit(Record):
    """The record that makes a shard part of the results."""

    shard: int
    attempt: str
    """Unique to the attempt that wrote the files."""
    files: dict[str, StoredFile]
    """By name of the table."""
    statuses: dict[str, int]
    """How often each value stands in a column `status`."""
    seconds: float
    """That the computation took."""
    committed_at: datetime

    @property
    def sha256(self) -> str:
        """Of the contents: the same for every attempt that computed the same tables."""
        return _sha256("".join(file.sha256 for _, file in sorted(self.files.items())).encode())


class GivenUp(Record):
    """Why a shard is missing that was tried three times and failed each time: `given_up/00012.json`.

    The record is created exclusively and stays. A later run tries the shard again, and once there is a commit the
    record tells of the past.
    """

    shard: int
    attempts: int
    reason: str
    at: datetime

    @property
    def message(self) -> str:
        """One line: what is missing, and why."""
        why = self.reason.strip().splitlines()[0]
        return f"shard {self.shard} failed {self.attempts} times and was left out: {why}"


def publish(store: Store, shard: int, tables: Tables, seconds: float) -> Commit | None:
    """Upload the tables of a shard and commit them.

    Returns:
        The commit, or None if another attempt had committed this shard before.

    Raises:
        UnsoundShardError: a table cannot be read back.
        StorageError: something cannot be written.
    """
    attempt = uuid4().hex
    statuses = Counter[str]()
    stored: dict[str, StoredFile] = {}
    for name, table in tables.items():
        content, path = encode(table), f"{name}/{shard:05d}.{attempt}.parquet"
        store.write(path, content)
        if store.size(path) != len(content):
            raise StorageError(f"{store.location}/{path} is not there in full after it was written")
        stored[name] = StoredFile(path=path, bytes=len(content), sha256=_sha256(content), rows=table.num_rows)
        if "status" in table.column_names:
            statuses.update(table["status"].to_pylist())
    commit = Commit(
        shard=shard,
        attempt=attempt,
        files=stored,
        statuses=dict(sorted(statuses.items())),
        seconds=round(seconds, 3),
        committed_at=datetime.now(UTC),
    )
    if store.create(commit_path(shard), commit.model_dump_json(indent=1).encode()):
        return commit
    for file in stored.values():
        store.delete(file.path)
    return None


def encode(table: pa.Table) -> bytes:
    """The file of a table. It is read back and compared, bit by bit.

    Raises:
        UnsoundShardError: what is read is not what was written.
    """
    table = table.combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **_encodings(table.schema))
    content = sink.getvalue().to_pybytes()
    found = decode(content)
    as_frame = cast("Callable[[pa.Table], pl.DataFrame]", pl.from_arrow)  # in which NaN equals itself
    same_schema = found.schema.equals(table.schema) and found.schema.metadata == table.schema.metadata
    if not same_schema or not as_frame(found).equals(as_frame(table)):
        raise UnsoundShardError("a table does not come back from its file as it went in")
    return content


def decode(content: bytes) -> pa.Table:
    """The table of a file, in one chunk.

    Raises:
        UnsoundShardError: the file is damaged.
    """
    try:
        return pq.read_table(pa.BufferReader(content), page_checksum_verification=True).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise UnsoundShardError(f"a file is damaged: {error}") from error


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Floats repeat too seldom for a dictionary; split by byte, their exponents compress."""
    return {
        "use_dictionary": [field.name for field in schema if not _is_float(field.type)],
        "use_byte_stream_split": [_leaf(field) for field in schema if _is_float(field.type)],
    }


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_nested(field.type) else field.name


def _is_float(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind.value_type if pa.types.is_nested(kind) else kind)


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


def read_table(store: Store, file: StoredFile) -> pa.Table:
    """A committed table, for readers; pages are held against their checksums.

    Raises:
        BadInput: the file is missing or damaged; says how to repair it.
        StorageError: it cannot be read now.
    """
    try:
        return decode(store.read(file.path))
    except FileNotFoundError:
        raise damaged(store, f"{file.path} is gone") from None
    except UnsoundShardError as error:
        raise damaged(store, f"{file.path}: {error}") from None


def record_given_up(store: Store, given_up: GivenUp) -> None:
    """Write the record, unless the shard was given up before."""
    store.create(_given_up_path(given_up.shard), given_up.model_dump_json(indent=1).encode())


def read_given_up(store: Store) -> list[GivenUp]:
    """Shards that were given up and are not committed, in order.

    Raises:
        StorageError: a record is damaged.
    """
    missing = _record_ids(store, "given_up") - committed_ids(store)
    return _read_records(store, [_given_up_path(shard) for shard in sorted(missing)], GivenUp)


def damaged(store: Store, what: str) -> BadInput:
    """Something committed cannot be read any more."""
    return BadInput(f"{store.location}/{what}; `gbcd verify --repair {quote(store.root)}` computes it again")


def commit_path(shard: int) -> str:
    """Where the commit record of a shard lies."""
    return f"commits/{shard:05d}.json"


def _given_up_path(shard: int) -> str:
    return f"given_up/{shard:05d}.json"


def committed_ids(store: Store) -> set[int]:
    """Shards that are committed."""
    return _record_ids(store, "commits")


def read_commits(store: Store, shards: Iterable[int] | None = None) -> list[Commit]:
    """Commit records, in order of shard; all of them, or those of `shards` that exist.

    Raises:
        StorageError: a record is damaged.
    """
    wanted = committed_ids(store) if shards is None else set(shards)
    return _read_records(store, [commit_path(shard) for shard in sorted(wanted)], Commit)


def _read_records(store: Store, paths: Iterable[str], kind: type[Kind]) -> list[Kind]:
    """The records at `paths`, in that order, without those that are not there."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = [pool.submit(read_record, store, path, kind) for path in paths]
        return [record for one in found if (record := one.result()) is not None]


def read_record(store: Store, path: str, kind: type[Kind]) -> Kind | None:
    """The record at `path`; None if there is none.

    Raises:
        StorageError: it is damaged.
    """
    try:
        return kind.model_validate_json(store.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        repair = f"`gbcd verify --repair {quote(store.root)}` repairs it"
        raise StorageError(f"{store.location}/{path} is damaged or of another version; {repair}") from error


def _record_ids(store: Store, folder: str) -> set[int]:
    names = (_RECORD.fullmatch(entry.path) for entry in store.list(folder))
    return {int(match.group(1)) for match in names if match}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
