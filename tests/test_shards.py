from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.errors import BadInput
from gbcd.run.shards import FORMAT, Identity, Settings, cut, read_plan
from gbcd.run.store import Store

SETTINGS = Settings(
    model="reference",
    tasks=("ioi",),
    prompts_per_task=10,
    wrong_answers=("foil",),
    seed=0,
    calibration_prompts=8,
    centering="position",
    device="cpu",
    dtype="float32",
    shard_size=4,
    batch_size=2,
    threads=1,
)


@given(st.integers(1, 500), st.integers(1, 100), st.integers(0, 9), st.integers(0, 1000))
def test_shards_cover_every_row_once(n_prompts: int, shard_size: int, first_id: int, first_row: int) -> None:
    shards = cut("ioi", n_prompts, shard_size, first_id, first_row)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == [
        *range(first_row, first_row + n_prompts)
    ]
    assert [shard.id for shard in shards] == [*range(first_id, first_id + len(shards))]
    assert all(0 < shard.n_prompts <= shard_size for shard in shards)


def test_differences_name_what_changed_and_nothing_else() -> None:
    old = Identity(study=SETTINGS, versions={"torch": "2.13.0"}, hashes={"model": "aa"})
    assert old.differences(old) == []
    new = Identity(
        study=SETTINGS.model_copy(update={"seed": 1}), versions={"torch": "2.14.0"}, hashes={"model": "aa", "b": "c"}
    )
    assert old.differences(new) == ["hashes.b: None -> c", "study.seed: 0 -> 1", "versions.torch: 2.13.0 -> 2.14.0"]


def test_a_damaged_or_foreign_plan_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(BadInput, match=r"holds no plan\.json"):
        read_plan(store)
    for content in (b"{", b"{}", b'{"format": %d}' % (FORMAT + 1)):
        store.write("plan.json", content)
        with pytest.raises(BadInput, match="not written by this version of gbcd, or it is damaged"):
            read_plan(store)
