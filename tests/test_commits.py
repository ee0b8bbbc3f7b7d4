from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from gbcd.engine.calibration import TaskMeans
from gbcd.run.commits import decode, encode
from gbcd.run.norms_work import means_from_tables, tables_from_means
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


def test_means_come_back_from_their_files() -> None:
    means = TaskMeans(
        groups=("a", "b"),
        means={"m0.in": torch.randn(2, 3, 4), "a1.o": torch.randn(2, 3, 7), "embed": torch.randn(2, 3, 1)},
        tokens=torch.tensor([[5, 6, -1], [7, 8, 9], [1, -1, -1]]),
        token_groups=torch.tensor([1, 0, 1]),
        members=("p/0", "p/1", "p/2"),
    )
    tables = tables_from_means(means)
    assert tables.keys() == {"sample", "means"}
    found = means_from_tables([{name: decode(encode(table)) for name, table in tables.items()}])
    assert found.groups == means.groups
    assert found.means.keys() == means.means.keys()
    assert all(torch.equal(found.means[name], means.means[name]) for name in means.means)
    assert torch.equal(found.tokens, means.tokens)
    assert torch.equal(found.token_groups, means.token_groups)


def test_shards_of_a_sample_are_joined_and_short_groups_end_in_zeros() -> None:
    long = TaskMeans(("b",), {"x": torch.ones(1, 3, 2)}, torch.tensor([[7, 8, 9]]), torch.tensor([0]), ("p/1",))
    short = TaskMeans(("a",), {"x": torch.full((1, 2, 2), 5.0)}, torch.tensor([[5, 6]]), torch.tensor([0]), ("p/0",))
    found = means_from_tables([tables_from_means(one) for one in (long, short)])
    assert found.groups == ("a", "b")
    assert found.means["x"].tolist() == [[[5, 5], [5, 5], [0, 0]], [[1, 1], [1, 1], [1, 1]]]
    assert found.tokens.tolist() == [[7, 8, 9], [5, 6, -1]]
    assert (found.token_groups.tolist(), found.members) == ([1, 0], ("p/1", "p/0"))
    assert found.counts().tolist() == [[1, 1, 0], [1, 1, 1]]
