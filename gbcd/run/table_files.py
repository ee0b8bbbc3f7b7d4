"""Tables as Parquet files, and back.

Floats are split by byte (`BYTE_STREAM_SPLIT`) and everything is compressed with zstd; every page carries a checksum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.run.work import UnsoundShardError


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
