from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import N_SHARDS, as_toml, finished, same, tables
from test_cli import gbcd

from gbcd.analysis.reduce import reduce
from gbcd.commands.status import again
from gbcd.errors import BadInput
from gbcd.run.commits import committed_ids, decode, encode, publish
from gbcd.run.norms_work import MEANS, NORMS
from gbcd.run.results import scan
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.run.verification import forget, verify


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
    file_of(out, 1, "norms").unlink()


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


def means_flipped(out: Path) -> None:
    (path,) = (out / "calibration" / "means").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def means_deleted(out: Path) -> None:
    shutil.rmtree(out / "calibration" / "means")


def means_uncommitted(out: Path) -> None:
    (out / "calibration" / "commits" / "00000.json").unlink()


def components_truncated(out: Path) -> None:
    path = out / "components.parquet"
    path.write_bytes(path.read_bytes()[:-10])


def uncommitted(out: Path) -> None:
    (out / "commits" / "00001.json").unlink()


def test_an_untouched_run_is_sound(reference: Path) -> None:
    found = verify(str(reference / "out"))
    assert found.is_sound
    assert (found.orphans, [*filter(None, (stage.missing for stage in found.stages.values()))]) == (0, [])
    assert found.n_bytes > 0


@pytest.mark.parametrize(
    ("damage", "bad", "bad_means", "common"),
    [
        (truncated, {1}, set(), None),
        (flipped, {1}, set(), None),
        (deleted, {1}, set(), None),
        (swapped, {1, 2}, set(), None),
        (swapped_with_records, {1, 2}, set(), None),
        (record_truncated, {1}, set(), None),
        (record_copied, {1}, set(), None),
        (means_flipped, set(), {0}, None),
        (means_deleted, set(), {0}, None),
        (means_uncommitted, set(), set(), None),
        (components_truncated, set(), set(), "components.parquet"),
        (uncommitted, set(), set(), None),
    ],
)
def test_damage_is_found_and_exactly_that_is_computed_again(
    reference: Path, out: Path, damage: Callable[[Path], None], bad: set[int], bad_means: set[int], common: str | None
) -> None:
    damage(out)
    found = verify(str(out))
    assert not found.is_sound
    assert (set(found.stages[NORMS].bad), set(found.stages[MEANS].bad)) == (bad, bad_means)
    assert [*found.common] == ([common] if common else [])
    assert found.orphans == 0 or damage is uncommitted
    forget(str(out), found)
    run = finished(again(read_plan(Store(str(out))).study, str(out), 0, ()))
    assert run.found == N_SHARDS - len(bad) - (damage is uncommitted)
    assert verify(str(out)).is_sound
    assert same(tables(str(out)), tables(str(reference / "out")))


def test_committed_files_are_not_called_orphaned_whatever_else_is_damaged(out: Path) -> None:
    (out / "norms" / "00003.other.parquet").write_bytes(b"an attempt that never committed")
    (inputs,) = (out / "inputs").iterdir()
    inputs.write_bytes(inputs.read_bytes()[:-10])
    for damage in (flipped, record_truncated, means_flipped, components_truncated):
        damage(out)
    found = verify(str(out))
    assert not found.is_sound
    assert found.orphans == 1


def test_a_commit_of_a_shard_that_is_not_planned_is_not_reduced(out: Path) -> None:
    (out / "commits" / "00099.json").write_text((out / "commits" / "00001.json").read_text())
    with pytest.raises(BadInput, match=r"00099.json is of a shard that is not planned here; `gbcd verify --repair"):
        reduce(str(out))


@pytest.mark.parametrize("name", ["components", "summary", "analysis/template_sums"])
def test_a_damaged_table_beside_the_shards_is_named_with_what_writes_it_again(out: Path, name: str) -> None:
    reduce(str(out))
    path = out / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    status, _, refused = gbcd("evaluate", str(out), "--pairs", "4", "--workers", "0")
    assert status == 2
    assert re.search(rf"{name}.parquet is damaged or of another version; `gbcd .*` writes it again", refused)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-50])])
def test_prompts_that_are_lost_are_said_by_every_command_that_needs_them(
    out: Path, damage: Callable[[Path], object]
) -> None:
    study = read_plan(Store(str(out))).study.model_copy(update={"out": str(out)})
    damage(next((out / "inputs").iterdir()))
    file = out.parent / "study.toml"
    file.write_text(as_toml(study, workers=0))
    for words in (["run", str(file)], ["verify", str(out)], ["verify", "--repair", str(out)]):
        status, _, refused = gbcd(*words)
        assert status == 2
        assert re.search(r"prompts are (gone|damaged|gone or damaged); .*start again in another folder", refused)


def test_shards_of_an_evaluation_are_verified_too(out: Path) -> None:
    """Of any kind of work below `evaluation/`; its plan is not looked at."""
    store = Store(str(out)).below("evaluation/key/effects")
    for shard in range(2):
        publish(store, shard, {"rows": pa.table({"drop": [0.5, shard]})}, 1.0)
    assert verify(str(out)).is_sound
    (first,) = (out / "evaluation" / "key" / "effects" / "rows").glob("00000.*")
    first.unlink()
    found = verify(str(out))
    assert not found.is_sound
    assert set(found.stages["evaluation/key/effects"].bad) == {0}
    forget(str(out), found)
    assert committed_ids(store) == {1}
    assert verify(str(out)).is_sound


@pytest.mark.parametrize("damage", [truncated, deleted])
def test_readers_of_damaged_results_are_told_how_to_repair_them(out: Path, damage: Callable[[Path], None]) -> None:
    damage(out)
    for read in (reduce, lambda folder: scan(folder).collect()):
        with pytest.raises(BadInput, match=rf"norms/00001.*`gbcd verify --repair {out}` computes it again"):
            read(str(out))


def test_a_run_does_not_go_on_with_damaged_means(out: Path) -> None:
    means_flipped(out)
    uncommitted(out)
    with pytest.raises(BadInput, match=rf"means.*`gbcd verify --repair {out}`"):
        finished(again(read_plan(Store(str(out))).study, str(out), 0, ()))


def test_norms_against_other_means_are_found(out: Path) -> None:
    """The means were lost, and what was computed in their place differs."""
    path = out / "calibration" / "commits" / "00000.json"
    record = json.loads(path.read_text())
    means = record["files"]["means"]
    table = decode((out / "calibration" / means["path"]).read_bytes()).slice(1)
    content = encode(table)
    (out / "calibration" / means["path"]).write_bytes(content)
    means |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "rows": table.num_rows}
    path.write_text(json.dumps(record))
    found = verify(str(out))
    assert found.stages[MEANS].bad == {}
    assert set(found.stages[NORMS].bad) == set(range(N_SHARDS))
    assert "other mean activations" in found.stages[NORMS].bad[0]
