from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import N_SHARDS, finished, same, small_study, tables

from gbcd.run.planning import study_of
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.run.verification import forget, verify


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    finished(small_study(folder))
    return folder


@pytest.fixture
def out(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference / "out", tmp_path / "out"))


def file_of(out: Path, shard: int, kind: str) -> Path:
    commit = json.loads((out / "commits" / f"{shard:05d}.json").read_text())
    return out / commit["files"][kind]["path"]


def truncated(out: Path) -> None:
    path = file_of(out, 1, "norms")
    path.write_bytes(path.read_bytes()[:-100])


def flipped(out: Path) -> None:
    path = file_of(out, 1, "prompts")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def deleted(out: Path) -> None:
    file_of(out, 1, "coherence").unlink()


def swapped(out: Path) -> None:
    one, other = file_of(out, 1, "norms"), file_of(out, 2, "norms")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swapped_with_records(out: Path) -> None:
    """Sums agree; only the prompts tell."""
    one, other = (json.loads((out / "commits" / f"{shard:05d}.json").read_text()) for shard in (1, 2))
    one["files"], other["files"] = other["files"], one["files"]
    for record in (one, other):
        (out / "commits" / f"{record['shard']:05d}.json").write_text(json.dumps(record))


def record_truncated(out: Path) -> None:
    path = out / "commits" / "00001.json"
    path.write_bytes(path.read_bytes()[:-20])


def record_copied(out: Path) -> None:
    shutil.copy(out / "commits" / "00002.json", out / "commits" / "00001.json")


def calibration_flipped(out: Path) -> None:
    path = out / "calibration.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def calibration_deleted(out: Path) -> None:
    (out / "calibration.safetensors").unlink()


def components_truncated(out: Path) -> None:
    path = out / "components.parquet"
    path.write_bytes(path.read_bytes()[:-10])


def uncommitted(out: Path) -> None:
    (out / "commits" / "00001.json").unlink()


def test_an_untouched_run_is_sound(reference: Path) -> None:
    found = verify(str(reference / "out"))
    assert found.is_sound
    assert (found.leftovers, found.missing) == (0, ())
    assert found.n_bytes > 0


@pytest.mark.parametrize(
    ("damage", "bad", "common"),
    [
        (truncated, {1}, None),
        (flipped, {1}, None),
        (deleted, {1}, None),
        (swapped, {1, 2}, None),
        (swapped_with_records, {1, 2}, None),
        (record_truncated, {1}, None),
        (record_copied, {1}, None),
        (calibration_flipped, set(), "calibration.safetensors"),
        (calibration_deleted, set(), "calibration.safetensors"),
        (components_truncated, set(), "components.parquet"),
        (uncommitted, set(), None),
    ],
)
def test_damage_is_found_and_exactly_that_is_computed_again(
    reference: Path, out: Path, damage: Callable[[Path], None], bad: set[int], common: str | None
) -> None:
    damage(out)
    found = verify(str(out))
    assert not found.is_sound
    assert set(found.bad) == bad
    assert [*found.common] == ([common] if common else [])
    forget(str(out), found)
    run = finished(study_of(read_plan(Store(str(out))), str(out), workers=0))
    assert run.found == N_SHARDS - len(bad) - (damage is uncommitted)
    assert verify(str(out)).is_sound
    assert same(tables(str(out)), tables(str(reference / "out")))


def test_a_run_does_not_go_on_with_another_calibration(out: Path) -> None:
    calibration_flipped(out)
    uncommitted(out)
    from gbcd.errors import Incomplete

    with pytest.raises(Incomplete, match=r"calibration\.safetensors is damaged; `gbcd verify --repair"):
        finished(study_of(read_plan(Store(str(out))), str(out), workers=0))


def test_lost_prompts_are_said_to_be_lost(out: Path) -> None:
    (inputs,) = (out / "inputs").iterdir()
    inputs.write_bytes(inputs.read_bytes()[:-10])
    found = verify(str(out))
    assert "start again in another folder" in "".join(found.common.values())
