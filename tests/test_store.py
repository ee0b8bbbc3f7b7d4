from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gbcd.errors import BadInput
from gbcd.run.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def test_reading_makes_no_folder(store: Store) -> None:
    assert not store.exists("plan.json")
    assert store.list("commits") == []
    store.delete("plan.json")
    with pytest.raises(FileNotFoundError):
        store.read("plan.json")
    assert not Path(store.location).exists()


def test_write_replaces_and_create_does_not(store: Store) -> None:
    store.write("a/b", b"one")
    store.write("a/b", b"two")
    assert store.read("a/b") == b"two"
    assert not store.create("a/b", b"three")
    assert store.read("a/b") == b"two"
    assert store.create("a/c", b"four")
    assert [(entry.path, entry.size) for entry in store.list("a")] == [("a/b", 3), ("a/c", 4)]
    store.delete("a/b")
    assert store.size("a/b") is None


def test_repeating_the_same_create_wins_again(store: Store) -> None:
    """The answer to the first may have been lost."""
    assert store.create("record", b"mine")
    assert store.create("record", b"mine")


def test_of_many_creators_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: store.create("record", b"%d" % number), range(64)))
    assert sum(won) == 1
    assert store.read("record") == b"%d" % won.index(True)


def test_files_are_read_by_range(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "table.parquet"
    pq.write_table(pa.table({"x": range(1000)}), local, row_group_size=10)
    store.write("table.parquet", local)
    assert pq.ParquetFile(store.open("table.parquet")).read_row_group(7)["x"].to_pylist() == [*range(70, 80)]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Store("~/results").write("x", b"")
    assert (tmp_path / "results" / "x").exists()


def test_a_location_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        Store(str(tmp_path / "file"))
    with pytest.raises(BadInput, match="give a folder, s3://bucket/prefix or gs://bucket/prefix"):
        Store("ftp://host/path")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "", "AWS_ACCESS_KEY_ID is set, and empty; give it a value, or unset it"),
        ("AWS_SECRET_ACCESS_KEY", " ", "AWS_SECRET_ACCESS_KEY is set, and empty"),
        ("AWS_ENDPOINT", "http://localhost:9000", "give https://, or set AWS_ALLOW_HTTP=true"),
    ],
)
def test_a_variable_that_no_bucket_can_be_reached_by_is_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "given")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=said):
        Store("s3://bucket/prefix")
