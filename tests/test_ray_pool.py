"""The same study on Ray workers; one Ray serves all tests here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import fault_engines
import pytest
import ray
from fault_engines import killed_by
from ray import cloudpickle
from small_runs import as_toml, finished, same, small_study, tables, wait_for

from gbcd.job import ray_pool
from gbcd.job.commits import committed_ids, read_commits
from gbcd.job.results import summary
from gbcd.job.shards import read_plan
from gbcd.job.store import Store
from gbcd.job.verification import verify

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in this process."""
    folder = tmp_path_factory.mktemp("reference")
    finished(small_study(folder))
    return folder


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Generator[None]:
    ray_pool.connect(2)
    cloudpickle.register_pickle_by_value(fault_engines)  # workers do not have the tests on their path
    yield
    ray.shutdown()


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_do_not_depend_on_the_number_of_workers(reference: Path, tmp_path: Path, workers: int) -> None:
    study = small_study(reference, workers=workers, out=str(tmp_path / "out"))
    assert finished(study).missing == ()
    assert same(tables(study.out), tables(str(reference / "out")))
    assert summary(study.out).collect().equals(summary(str(reference / "out")).collect())


def test_a_worker_that_is_killed_is_replaced_and_nothing_changes(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, workers=2, out=str(tmp_path / "out"))
    run = finished(study, killed_by("ioi/000011", marker=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert run.missing == ()
    assert {commit.batch_size for commit in read_commits(Store(study.out))} == {4}
    assert same(tables(study.out), tables(str(reference / "out")))


def test_a_driver_that_is_killed_leaves_no_worker_that_goes_on(reference: Path, tmp_path: Path) -> None:
    """Its workers end with it; what they had committed stays, and the next driver does the rest."""
    shared = small_study(reference, out=str(tmp_path / "out"))
    study = shared.model_copy(update={"compute": shared.compute.model_copy(update={"shard_size": 1})})
    alone = study.model_copy(update={"out": str(tmp_path / "alone")})
    finished(alone)
    file = tmp_path / "study.toml"
    file.write_text(as_toml(study, workers=2))
    driver = subprocess.Popen(
        [sys.executable, "-m", "gbcd", "run", str(file)],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: bool(committed_ids(Store(study.out))) or driver.poll() is not None)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    left = committed_ids(Store(study.out))
    assert 0 < len(left) < len(read_plan(Store(study.out)).shards)
    time.sleep(0.5)
    assert committed_ids(Store(study.out)) == left
    assert finished(study).found == len(left)
    assert same(tables(study.out), tables(alone.out))
    assert verify(study.out).is_sound
