"""Processes that are really killed; the oracle is always an uninterrupted run, to the last bit."""

from __future__ import annotations

import io
import os
import signal
import time
from functools import partial
from pathlib import Path

import dying_run
import pytest
from processes import Process, gbcd, started
from rich.console import Console
from small_runs import N_SHARDS, finished, same, small_study, tables

from gbcd.commands.closing import closing_summary
from gbcd.pipeline import run_study
from gbcd.run.commits import committed_ids
from gbcd.run.norms_work import NormsWork
from gbcd.run.planning import open_plan
from gbcd.run.results import summary
from gbcd.run.slices import Slice
from gbcd.run.store import Store
from gbcd.run.verification import verify
from gbcd.run.work import Outcome, Task
from gbcd.run.worker import Worker


def arguments(folder: Path, out: str) -> list[str]:
    study = small_study(folder)
    wrong_answers = [word for name in study.wrong_answers for word in ("--wrong-answer", name)]
    return [
        "run", "--task", "ioi", "--model", study.model, "--prompts",
        str(study.prompts_per_task), *wrong_answers, "--out", out, "--workers", "0", "--device", "cpu",
        "--shard-size", str(study.compute.shard_size), "--batch-size", str(study.compute.batch_size),
    ]  # fmt: skip


def running(folder: Path, out: str, number: int = 1, *more: str) -> Process:
    return gbcd(Path(f"{out}{number}"), *arguments(folder, out), *more)


@pytest.mark.parametrize(
    ("place", "orphans"), [("before_write", 0), ("mid_file", 1), ("before_commit", 2), ("after_commit", 0)]
)
def test_a_process_that_dies_anywhere_loses_and_doubles_nothing(
    reference: Path, tmp_path: Path, place: str, orphans: int
) -> None:
    out = str(tmp_path / "out")
    dying = started(tmp_path / "said", dying_run.run, place, arguments(reference, out))
    assert dying.ended()[0] == -signal.SIGKILL
    done = {0, 1, 2} if place == "after_commit" else {0, 1}
    assert committed_ids(Store(out)) == done
    assert finished(small_study(reference, out=out)).found == len(done)
    assert same(tables(out), tables(str(reference / "out")))
    found = verify(out)
    assert found.is_sound
    assert found.orphans == orphans


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_says_how_to_go_on(reference: Path, tmp_path: Path, how: signal.Signals) -> None:
    out = str(tmp_path / "out")
    process = running(reference, out)
    while process.of.is_alive() and not committed_ids(Store(out)):
        time.sleep(0.01)
    os.kill(process.of.pid or 0, how)
    status, _, said = process.ended()
    if len(committed_ids(Store(out))) < N_SHARDS:
        assert status == 130
        assert "The same command goes on from here" in said
    assert finished(small_study(reference, out=out)).missing == ()
    assert same(tables(out), tables(str(reference / "out")))


def test_two_drivers_on_one_folder_double_nothing(reference: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    both = [running(reference, out, number) for number in (1, 2)]
    assert [process.ended()[0] for process in both] == [0, 0]
    assert same(tables(out), tables(str(reference / "out")))
    assert verify(out).is_sound


def test_slices_that_run_at_once_make_the_whole_run(reference: Path, tmp_path: Path) -> None:
    """Both plan, share the means, and compute their shards; who commits last reduces. A flag wins over variables."""
    out, words = str(tmp_path / "out"), arguments(reference, str(tmp_path / "out"))
    node = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    slices = [
        gbcd(tmp_path / "node", *words, environment=node),
        gbcd(tmp_path / "flag", *words, "--slice", "1/2", environment=node),
    ]
    ended = [one.ended() for one in slices]
    assert [status for status, *_ in ended] == [0, 0], ended
    assert ["2 of 2, from SKYPILOT_NODE_RANK" in log for _, log, _ in ended] == [True, False]
    assert any(f"in {N_SHARDS} of {N_SHARDS} shards" in log for _, log, _ in ended)
    assert same(tables(out), tables(str(reference / "out")))
    assert summary(out).collect().equals(summary(str(reference / "out")).collect())
    assert verify(out).is_sound


def test_a_slice_computes_its_shards_and_the_last_one_reduces(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, out=str(tmp_path / "out"))
    open_plan(study)
    console = Console(file=io.StringIO(), record=True, width=200)
    run = run_study(study, console, part=Slice(2, 3))
    closing_summary(run, console)
    said = console.export_text()
    assert "planned before, centred by" in said
    assert "2/3; not committed yet, of other slices: 3 shards." in said
    assert committed_ids(Store(study.out)) == {1, 4}
    assert (run.missing, run.left_to_others, run.summary) == ((), (0, 2, 3), None)
    finished(study)
    assert summary(study.out).collect().equals(summary(str(reference / "out")).collect())


def test_a_zombie_that_commits_late_changes_nothing(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked, saw no commit, and computed; meanwhile somebody else has committed the shard."""
    study = small_study(reference, out=str(tmp_path / "out"))
    finished(study)
    before = (tmp_path / "out" / "commits" / "00001.json").read_bytes()
    zombie = Worker(study.out, partial(NormsWork, study.out))
    monkeypatch.setattr(Store, "exists", lambda store, path: False)
    assert zombie.run(Task("", 1), lambda done: None) == Outcome(Task("", 1))
    assert (tmp_path / "out" / "commits" / "00001.json").read_bytes() == before
    monkeypatch.undo()
    found = verify(study.out)
    assert found.is_sound
    assert found.orphans == 0
