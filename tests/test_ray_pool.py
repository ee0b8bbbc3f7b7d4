"""The same study on Ray workers; one Ray serves all tests here."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import fault_engines
import pytest
import ray
from fault_engines import killed_by
from ray import cloudpickle
from small_runs import finished, same, small_study, tables

from gbcd.job import ray_pool
from gbcd.job.commits import read_commits
from gbcd.job.results import summary
from gbcd.job.store import Store

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
