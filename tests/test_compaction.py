"""Merging files changes nothing that anybody sees, whatever happens on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from fault_engines import poisoned_by
from small_runs import N_SHARDS, finished, same, small_study, tables

from gbcd.analysis.reduce import reduce
from gbcd.run import compaction, failpoints, merged
from gbcd.run.commits import commit_path, committed_ids
from gbcd.run.compaction import Compaction, compact
from gbcd.run.inputs import Inputs
from gbcd.run.planning import study_of
from gbcd.run.results import coherence, prompts, scan, summary
from gbcd.run.shards import read_plan
from gbcd.run.standing import folder_standing
from gbcd.run.store import StorageError, Store
from gbcd.run.verification import forget, verify

KINDS = ("prompts", "norms", "coherence")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose files are small."""
    folder = tmp_path_factory.mktemp("reference")
    finished(small_study(folder))
    return folder / "out"


@pytest.fixture
def out(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy, in which two shards make a group: 0 and 1, 2 and 3; 4 is alone."""
    monkeypatch.setattr(merged, "GROUP_PROMPTS", 16)
    return str(shutil.copytree(reference, tmp_path / "out"))


def n_files(out: str) -> int:
    return sum(len(list((Path(out) / kind).iterdir())) for kind in KINDS)


def killed_at(failpoint: str, out: str) -> int:
    """Status of `gbcd compact`, with the groups and the grace of these tests, that dies there."""
    program = (
        "import sys; from datetime import timedelta; from gbcd.run import compaction, merged; "
        "merged.GROUP_PROMPTS = 16; compaction.GRACE = timedelta(0); compaction.compact(sys.argv[1])"
    )
    environment = {**os.environ, failpoints.VARIABLE: failpoint}
    return subprocess.run([sys.executable, "-c", program, out], env=environment, check=False).returncode


def test_readers_see_the_same_before_and_after(reference: Path, out: str) -> None:
    begun = {"scan": scan(out), "prompts": prompts(out), "coherence": coherence(out)}
    assert compact(out) == Compaction(groups=2, shards=4, removed=0, waiting=12)
    assert same(tables(out), tables(str(reference)))
    assert same({name: table.collect() for name, table in begun.items()}, tables(str(reference)))
    assert reduce(out).equals(summary(str(reference)).collect())
    assert (folder_standing(out).shards, folder_standing(out).prompts) == (N_SHARDS, 40)
    assert verify(out).is_sound
    assert finished(study_of(read_plan(Store(out)), out, workers=0)).found == N_SHARDS
    assert compact(out) == Compaction(groups=0, shards=0, removed=0, waiting=12)


def test_what_was_replaced_is_removed_when_nobody_can_be_reading_it(
    reference: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncommitted = Path(out) / "norms" / "00009.attempt.parquet"
    uncommitted.write_bytes(b"whose record may come any moment")
    compact(out)
    monkeypatch.setattr(compaction, "GRACE", timedelta(0))
    assert compact(out) == Compaction(groups=0, shards=0, removed=12, waiting=0)
    assert uncommitted.exists()
    assert n_files(out) == 3 * 3 + 1
    assert same(tables(out), tables(str(reference)))
    assert verify(out).is_sound


@pytest.mark.parametrize("place", ["before_write", "mid_file", "after_file", "after_commit", "mid_sweep"])
def test_a_compaction_that_dies_anywhere_changes_nothing(
    reference: Path, out: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "mid_sweep":
        compact(out)
    assert killed_at(f"{place}:{0 if place == 'mid_sweep' else 1}", out) == failpoints.STATUS
    assert same(tables(out), tables(str(reference)))
    assert verify(out).is_sound
    monkeypatch.setattr(compaction, "GRACE", timedelta(0))
    compact(out)
    compact(out)
    assert same(tables(out), tables(str(reference)))
    assert verify(out).is_sound
    assert n_files(out) == 3 * 3


def test_of_two_compactions_one_wins_each_group(reference: Path, out: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(compact, [out] * 4))
    assert sum(one.groups for one in found) == 2
    assert n_files(out) == 3 * (N_SHARDS + 2)
    assert same(tables(out), tables(str(reference)))
    assert verify(out).is_sound


def test_a_group_that_lacks_a_shard_waits_for_it(reference: Path, out: str) -> None:
    Store(out).delete(commit_path(2))
    assert compact(out).shards == 2
    finished(study_of(read_plan(Store(out)), out, workers=0))
    assert compact(out).shards == 2
    assert same(tables(out), tables(str(reference)))


@pytest.mark.parametrize("swept", [False, True])
def test_damage_to_a_merged_file_is_found_and_repaired(
    reference: Path, out: str, swept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards go back to their own files where these are still there, and are computed again where they are not."""
    compact(out)
    if swept:
        monkeypatch.setattr(compaction, "GRACE", timedelta(0))
        compact(out)
    damaged = next((Path(out) / "norms").glob("merged-00001.*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = verify(out)
    assert set(found.bad) == {2, 3}
    forget(out, found)
    assert committed_ids(Store(out)) == ({0, 1, 4} if swept else {0, 1, 2, 3, 4})
    finished(study_of(read_plan(Store(out)), out, workers=0))
    assert verify(out).is_sound
    assert same(tables(out), tables(str(reference)))


def test_a_damaged_file_is_not_merged(out: str) -> None:
    small = next((Path(out) / "norms").glob("00001.*"))
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"norms/00001\..*gbcd verify --repair"):
        compact(out)
    assert list((Path(out) / "merged").glob("*")) == []


def test_a_shard_without_values_for_a_prompt_is_not_merged_until_it_has_them(reference: Path, out: str) -> None:
    store, plan = Store(out), read_plan(Store(out))
    store.delete(commit_path(0))
    study = study_of(plan, out, workers=0)
    finished(study, poisoned_by(Inputs(store, plan).ids(plan.shards[0])[3]))
    assert compact(out).groups == 1
    assert finished(study).quarantined == ()
    assert compact(out).groups == 1
    assert same(tables(out), tables(str(reference)))
    assert verify(out).is_sound
