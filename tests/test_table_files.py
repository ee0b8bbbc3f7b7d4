from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from gbcd.run.table_files import decode, encode
from gbcd.run.work import UnsoundShardError

TABLE = pa.table(
    {
        "name": ["a", None, "a"],
        "number": pa.array([1.0, math.nan, math.inf], pa.float32()),
        "fixed": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "ragged": pa.array([[1.0], [], [3.0, 4.0]], pa.list_(pa.float64())),
        "tokens": pa.array([[1, 2], None, []], pa.list_(pa.int32())),
    }
)


def test_a_table_comes_back_with_its_metadata_whatever_its_chunks() -> None:
    table = pa.concat_tables([TABLE, TABLE]).replace_schema_metadata({"key": "value"})
    found = decode(encode(table))
    assert found.schema.equals(table.schema)
    assert found.schema.metadata == {b"key": b"value"}
    assert str(found.to_pylist()) == str(table.to_pylist())  # NaN is not equal to itself


def test_the_same_table_gives_the_same_bytes() -> None:
    assert encode(TABLE) == encode(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]))


@pytest.mark.parametrize("where", [0.5, 1.0])
def test_a_flipped_byte_is_noticed_without_the_record(where: float) -> None:
    """Pages carry checksums; the last bytes are the footer's."""
    numbers = np.random.default_rng(0).standard_normal(1000)
    content = bytearray(encode(pa.table({"number": numbers})))
    content[int(where * len(content)) - 3] ^= 255
    with pytest.raises(UnsoundShardError, match="a file is damaged"):
        decode(bytes(content))
