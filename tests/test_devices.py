"""The device of a study is known before anything is written."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest
from small_runs import small_study

from gbcd.errors import BadInput
from gbcd.run import ray_pool
from gbcd.run.planning import open_plan
from gbcd.run.settling import settled_device
from gbcd.study import Compute


def with_gpu(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: present)


def joined(monkeypatch: pytest.MonkeyPatch, now: float, most: float | None) -> None:
    """A cluster with so many GPUs now, and at most."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.setattr(ray_pool, "connect", lambda n_cpus: False)
    monkeypatch.setattr(ray_pool.ray, "cluster_resources", lambda: {"GPU": now})
    offered = None if most is None else {"CPU": 8, "GPU": most}
    monkeypatch.setattr(ray_pool, "state", MagicMock(get_max_resources_from_cluster_config=lambda: offered))


def test_auto_is_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, device in ((False, "cpu"), (True, "cuda")):
        with_gpu(monkeypatch, present)
        assert settled_device(Compute(device="auto")) == device
        assert settled_device(Compute(device="cpu")) == "cpu"


@pytest.mark.parametrize(
    ("now", "most", "device"), [(1, None, "cuda"), (0, 4, "cuda"), (0, 0, "cpu"), (0, None, "cpu")]
)
def test_auto_on_a_cluster_is_what_it_can_offer(
    monkeypatch: pytest.MonkeyPatch, now: float, most: float | None, device: str
) -> None:
    with_gpu(monkeypatch, False)
    joined(monkeypatch, now, most)
    assert settled_device(Compute(device="auto", workers=2)) == device


@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_that_is_not_there_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with_gpu(monkeypatch, False)
    study = small_study(tmp_path, workers=workers, device="cuda")
    with pytest.raises(BadInput, match="device 'cuda': torch finds no GPU here"):
        open_plan(study)
    joined(monkeypatch, 0, 0)
    if workers:
        with pytest.raises(BadInput, match="the cluster has no node with a GPU and can start none"):
            open_plan(study)
    assert not (tmp_path / "out").exists()


def test_auto_means_the_same_when_a_study_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(tmp_path, device="auto")
    with_gpu(monkeypatch, False)
    assert open_plan(study).plan.study.compute.device == "cpu"
    with_gpu(monkeypatch, True)
    again = open_plan(study)
    assert again.resumed
    assert again.plan.study.compute.device == "cpu"
