"""Tables as Parquet files, and back.

Floats are split by byte (`BYTE_STREAM_SPLIT`) and everything is compressed with zstd; every page carries a checksum.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    same_schema = found.schema.equals(table.schema) and found.schema.metadata == table.schema.metadata
    if not same_schema or not all(map(_equal, found.itercolumns(), table.itercolumns())):
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


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Equal values, where NaN equals itself."""
    if one.equals(other):
        return True
    if pa.types.is_nested(one.type):
        compute = cast(Any, pc)  # its functions are made at run time
        lengths = compute.list_value_length(one).equals(compute.list_value_length(other))
        return lengths and _equal(compute.list_flatten(one), compute.list_flatten(other))
    if not pa.types.is_floating(one.type) or len(one) != len(other):
        return False
    pairs = np.array_equal(one.to_numpy(), other.to_numpy(), equal_nan=True)
    return pairs and one.is_null().equals(other.is_null())


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
