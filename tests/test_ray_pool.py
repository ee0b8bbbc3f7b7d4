"""The same study on Ray workers; one Ray serves all tests here."""

from __future__ import annotations

import io
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import ray
from fault_engines import killed_by, refusing, slow, stopped_once
from processes import gbcd
from rich.console import Console
from small_runs import as_toml, finished, same, small_study, tables, wait_for

from gbcd.errors import BadInput
from gbcd.pipeline import run_study
from gbcd.run import ray_pool
from gbcd.run.commits import committed_ids
from gbcd.run.executor import Team, execute
from gbcd.run.norms_work import stages
from gbcd.run.planning import open_plan
from gbcd.run.progress import ProgressDisplay
from gbcd.run.results import EDGES_FILE, NEURONS_FILE, summary
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.run.verification import verify
from gbcd.run.work import Workers

pytestmark = [
    pytest.mark.usefixtures("ray_here"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.usefixtures("forgotten")
def test_nothing_depends_on_the_number_of_workers_and_none_is_started_without_a_shard(
    reference: Path, tmp_path: Path
) -> None:
    """Edges, neurons, steps of integration, and a wrong answer that a file defines."""
    asked: dict[str, Any] = {"edges": True, "neurons": ("m0", "m1"), "ig_steps": 3, "prompts_per_task": 16}
    asked |= {"wrong_answers": ("fixed", "foil"), "definitions": (str(Path(__file__).with_name("own_definitions.py")),)}
    here, there = (
        small_study(reference, workers=workers, out=str(tmp_path / str(workers)), **asked) for workers in (0, 7)
    )
    said = io.StringIO()
    assert finished(here).missing == run_study(there, Console(file=said, width=200)).missing == ()
    # how many are ready by the end of so short a run is chance; how many are asked for is not
    assert "/2 workers" in said.getvalue()
    assert "/7 workers" not in said.getvalue()
    assert same(tables(here.out), tables(there.out))
    assert summary(here.out).collect().equals(summary(there.out).collect())
    for name in (EDGES_FILE, NEURONS_FILE):
        one, other = (pl.read_parquet(Path(study.out) / name) for study in (here, there))
        assert one.height > 0
        assert one.equals(other)


def test_a_worker_that_is_killed_is_replaced_and_nothing_changes(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, workers=2, out=str(tmp_path / "out"))
    run = finished(study, killed_by("ioi/000011", marker=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert run.missing == ()
    assert same(tables(study.out), tables(str(reference / "out")))


def test_a_worker_that_hangs_is_ended_and_replaced_and_nothing_changes(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process says nothing, and does not die either."""
    monkeypatch.setattr(ray_pool, "FLOOR", 4.0)
    monkeypatch.setattr(ray_pool, "UNMEASURED", 4.0)
    monkeypatch.setattr(ray_pool, "FACTOR", 0.0)
    study = small_study(reference, workers=2, out=str(tmp_path / "out"))
    said = io.StringIO()
    marker = tmp_path / "stopped"
    run = run_study(study, Console(file=said), killed_by("ioi/000011", str(marker), signal.SIGSTOP))
    wait_for(lambda: not Path("/proc", marker.read_text()).exists())
    assert re.search(r"shard \d: the worker was lost: it made no progress for \d+ s; the limit", said.getvalue())
    assert run.missing == ()
    assert same(tables(study.out), tables(str(reference / "out")))


def test_a_worker_that_hangs_before_it_is_ready_holds_up_nobody(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, workers=2, out=str(tmp_path / "out"))
    marker = tmp_path / "stopped"
    console = Console(file=io.StringIO())
    planned = open_plan(study)
    build = partial(stopped_once, study.out, str(marker))
    with Team(study.out, build, Workers(2)) as team, ProgressDisplay(console) as display:
        assert execute(team, stages(planned.plan), display) == []
    wait_for(lambda: not Path("/proc", marker.read_text()).exists())
    assert same(tables(study.out), tables(str(reference / "out")))


def test_progress_is_told_while_a_shard_is_computed(reference: Path, tmp_path: Path) -> None:
    study, said = small_study(reference, workers=1, shard_size=40, out=str(tmp_path / "out")), io.StringIO()
    run_study(study, Console(file=said, width=200), slow(1.0))
    done = [int(found) for found in re.findall(r"Scores: (\d+) of 40 prompts, 0/1 shards", said.getvalue())]
    assert [number for number in done if 0 < number < 40], said.getvalue()


def test_a_workers_refusal_is_one_sentence(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, workers=1, out=str(tmp_path / "out"))
    with pytest.raises(BadInput) as refused:
        finished(study, refusing("no such token"))
    assert str(refused.value) == "no such token"


def test_a_driver_that_is_killed_leaves_no_worker_that_goes_on(reference: Path, tmp_path: Path) -> None:
    """Its workers end with it; what they had committed stays, and the next driver does the rest."""
    study = small_study(reference, out=str(tmp_path / "out"), shard_size=1, batch_size=1)
    alone = study.model_copy(update={"out": str(tmp_path / "alone")})
    finished(alone)
    file = tmp_path / "study.toml"
    file.write_text(as_toml(study, workers=2))
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = gbcd(tmp_path / "said", "run", str(file), environment=address)
    wait_for(lambda: bool(committed_ids(Store(study.out))) or not driver.of.is_alive())
    driver.of.kill()
    assert (ended := driver.ended())[0] == -signal.SIGKILL, ended
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    left = committed_ids(Store(study.out))
    assert 0 < len(left) < len(read_plan(Store(study.out)).shards)
    time.sleep(0.5)
    assert committed_ids(Store(study.out)) == left
    assert finished(study).found == len(left)
    assert same(tables(study.out), tables(alone.out))
    assert verify(study.out).is_sound
