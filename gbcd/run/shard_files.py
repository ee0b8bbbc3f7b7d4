"""The Parquet files of one shard: encode, read back, check.

Floats are split by byte (`BYTE_STREAM_SPLIT`) and everything is compressed with zstd; every page carries a checksum.
What is checked is what was read back from the encoded bytes, not what went in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.engine.tables import COHERENCE, FAILED, NON_FINITE, OK, PROMPTS, STATISTICS, ShardTables, norms_schema
from gbcd.run.shards import Shard


class UnsoundShardError(RuntimeError):
    """The tables of a shard are not what they must be."""


class Contents(NamedTuple):
    """Encoded tables."""

    prompts: bytes
    norms: bytes
    coherence: bytes


class ShardFiles(NamedTuple):
    """Encoded tables, checked, with what a commit says about them."""

    contents: Contents
    rows: dict[str, int]
    statuses: dict[str, int]
    """Rows of `prompts` by status."""


class Expected(NamedTuple):
    """What the tables of a shard must hold: each prompt once per wrong answer, a value per component."""

    prompt_ids: list[str]
    wrong_answers: tuple[str, ...]
    n_components: int


def encode(shard: Shard, tables: ShardTables, expected: Expected) -> ShardFiles:
    """Encode the tables of a shard, decode them again, and check what comes out.

    Raises:
        UnsoundShardError: says what is wrong.
    """
    contents = Contents(*(_parquet(table) for table in tables))
    reopened = decode(contents)
    check(shard, reopened, expected)
    return _described(contents, reopened)


def merge(shards: Sequence[ShardTables]) -> ShardFiles:
    """Encode the tables of several shards, one after the other, and compare what is decoded again with them.

    Raises:
        UnsoundShardError: they come back different.
    """
    whole = ShardTables(*(pa.concat_tables(tables) for tables in zip(*shards, strict=True)))
    contents = Contents(*(_parquet(table) for table in whole))
    reopened = decode(contents)
    if not all(one.equals(other) for one, other in zip(reopened, whole, strict=True)):
        raise UnsoundShardError("the tables of several shards do not come back from their file as they went in")
    return _described(contents, reopened)


def decode(contents: Contents) -> ShardTables:
    """Tables from their encoded form.

    Raises:
        UnsoundShardError: a file is damaged.
    """
    try:
        return ShardTables(
            *(pq.read_table(pa.BufferReader(content), page_checksum_verification=True) for content in contents)
        )
    except (pa.ArrowException, OSError) as error:
        raise UnsoundShardError(f"a file is damaged: {error}") from error


def check(shard: Shard, tables: ShardTables, expected: Expected) -> None:
    """Refuse tables that are not what `expected` says, or hold a value that is neither finite nor flagged.

    Raises:
        UnsoundShardError: says what is wrong.
    """
    schemas = ShardTables(PROMPTS, norms_schema(expected.n_components), COHERENCE)._asdict()
    for kind, table in tables._asdict().items():
        if not table.schema.equals(schemas[kind]):
            raise UnsoundShardError(f"shard {shard.id}: {kind} has the schema\n{table.schema}\nnot\n{schemas[kind]}")
    wanted = sorted((prompt, wrong) for prompt in expected.prompt_ids for wrong in expected.wrong_answers)
    for kind, table in (("prompts", tables.prompts), ("norms", tables.norms)):
        if sorted(_keys(table)) != wanted:
            raise UnsoundShardError(
                f"shard {shard.id}: {kind} has {table.num_rows} rows, not one for each of {len(expected.prompt_ids)} "
                f"prompts and {len(expected.wrong_answers)} wrong answers"
            )
    _check_finite(shard, tables)


def _described(contents: Contents, tables: ShardTables) -> ShardFiles:
    rows = {kind: table.num_rows for kind, table in tables._asdict().items()}
    statuses = Counter[str](tables.prompts["status"].to_pylist())
    return ShardFiles(contents, rows, dict(sorted(statuses.items())))


def _check_finite(shard: Shard, tables: ShardTables) -> None:
    """Values are finite where there are any, and missing only where the status of the prompt's row says so."""
    statuses = dict(zip(_keys(tables.prompts), tables.prompts["status"].to_pylist(), strict=True))
    status = np.array([statuses[key] for key in _keys(tables.norms)])
    for statistic in STATISTICS:
        lists = tables.norms[statistic].combine_chunks()
        if not np.isfinite(lists.flatten().to_numpy(zero_copy_only=False)).all():
            raise UnsoundShardError(f"shard {shard.id}: {statistic} holds values that are not finite")
        sound = ~np.isin(status, (NON_FINITE, FAILED)) if statistic != "centered_grad_norm" else status == OK
        if not np.array_equal(np.asarray(lists.is_valid()), sound):
            raise UnsoundShardError(f"shard {shard.id}: {statistic} is there for other rows than their status says")


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["prompt_id"].to_pylist(), table["wrong_answer"].to_pylist(), strict=True))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        write_page_checksum=True,
        **_encodings(table.schema),
    )
    return sink.getvalue().to_pybytes()


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Floats repeat too seldom for a dictionary; split by byte, their exponents compress."""
    return {
        "use_dictionary": [field.name for field in schema if not _is_float(field.type)],
        "use_byte_stream_split": [_leaf(field) for field in schema if _is_float(field.type)],
    }


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name


def _is_float(kind: pa.DataType) -> bool:
    values = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    return pa.types.is_floating(values)
