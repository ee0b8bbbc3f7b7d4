from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.engine.proof import SelfCheck
from gbcd.errors import BadInput
from gbcd.run.shards import FORMAT, Plan, Shard, Sources, StoredFile, cut, read_plan
from gbcd.run.store import Store
from gbcd.study import Compute, Study

STUDY = Study(tasks=("ioi",), out="results", compute=Compute(batch_size=2, shard_size=4))
SOURCES = Sources(versions={"torch": "2.13.0"}, hashes={"model": "aa"}, definitions={"01": "/one/mine.py"})
FILE = StoredFile(path="inputs/x.parquet", bytes=1, sha256="", rows=9)
PROOF = SelfCheck(logits=1e-6, norms=1e-6, worst="a0.h0.q", n_blocks=2)


def plan(*shards: Shard) -> Plan:
    shards = shards or cut({"ioi": 9}, 4)
    return Plan(study=STUDY, sources=SOURCES, inputs=FILE, self_check=PROOF, means=(), shards=shards)


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 200), min_size=1), st.integers(1, 9), st.integers(1, 9))
def test_shards_cover_every_row_once_in_whole_batches(sizes: dict[str, int], batch: int, n_batches: int) -> None:
    shards = cut(sizes, batch * n_batches)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == [*range(sum(sizes.values()))]
    assert [shard.id for shard in shards] == [*range(len(shards))]
    for task, size in sizes.items():
        *full, last = [shard.n_prompts for shard in shards if shard.task == task]
        assert sum(full) + last == size
        assert set(full) <= {batch * n_batches}


def test_batches_of_a_shard_are_those_of_the_task() -> None:
    planned = plan(*cut({"ioi": 9}, 4))
    assert planned.tasks == ("ioi",)
    assert [planned.batches(shard) for shard in planned.shards] == [
        [slice(0, 2), slice(2, 4)], [slice(0, 2), slice(2, 4)], [slice(0, 1)],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [[(0, 4), (4, 8)], [(0, 4), (5, 9)], [(0, 5), (4, 9)], [(0, 9), (9, 9)], [(4, 9), (0, 4)], [(0, 4), (4, 10)]],
)
def test_a_plan_whose_shards_are_not_its_rows_is_refused(rows: list[tuple[int, int]], tmp_path: Path) -> None:
    edited = [{"id": number, "task": "ioi", "start": a, "stop": b} for number, (a, b) in enumerate(rows)]
    content = plan().model_dump(mode="json") | {"shards": edited}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"damaged or edited \(1 problem\)"):
        read_plan(Store(str(tmp_path)))


def test_differences_name_what_changed_and_nothing_else() -> None:
    old = plan()
    assert old.differences(STUDY, SOURCES) == []
    compute = STUDY.compute.model_copy(update={"threads": 2})
    study = STUDY.model_copy(update={"seed": 1, "tasks": ("ioi", "greater_than"), "compute": compute})
    sources = Sources(
        versions={"torch": "2.14.0"},
        hashes={"model": "aa", "b": "0123456789abcdef"},
        definitions={"02": "/one/mine.py"},
    )
    assert old.differences(study, sources) == [
        "compute.threads: 1 -> 2", "seed: 0 -> 1", "tasks: ioi -> ioi, greater_than", "hashes.b: none -> 0123456789ab",
        "versions.torch: 2.13.0 -> 2.14.0", "definitions: mine.py (01) -> mine.py (02)",
    ]  # fmt: skip


def test_where_things_lie_and_how_many_compute_is_no_difference() -> None:
    compute = STUDY.compute.model_copy(update={"workers": 9, "gpus_per_worker": 0.5})
    elsewhere = {"model": "/a/model", "out": "other", "definitions": ("b.py",), "compute": compute}
    moved = SOURCES.model_copy(update={"definitions": {"01": "/two/other.py"}})
    assert plan().differences(STUDY.model_copy(update=elsewhere), moved) == []


def test_a_damaged_or_foreign_plan_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(BadInput, match=r"holds no plan\.json"):
        read_plan(store)
    for content in (b"{", b"{}", b'{"format": %d}' % (FORMAT + 1)):
        store.write("plan.json", content)
        with pytest.raises(BadInput, match="not written by this version of gbcd, or it is damaged"):
            read_plan(store)
