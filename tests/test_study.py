from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.errors import BadInput
from gbcd.pipeline import workers_of
from gbcd.run import ray_pool
from gbcd.study import Compute, Study, make_study, read_study

MINIMAL = 'tasks = ["ioi"]\nout = "results/ioi"\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_a_minimal_file_takes_defaults(tmp_path: Path) -> None:
    study = read_study(written(tmp_path, MINIMAL))
    assert study == Study(tasks=("ioi",), out="results/ioi")
    assert (study.model, study.compute.workers, study.compute.threads) == ("reference", 2, 1)


def test_flags_win_over_the_file_and_leave_the_rest_of_compute(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL + "seed = 3\n[compute]\nshard_size = 8\nworkers = 1\n")
    study = read_study(file, {"seed": 4, "compute": {"workers": 0}})
    assert study.seed == 4
    assert study.compute == Compute(workers=0, shard_size=8)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("promts_per_task = 5", "unknown key 'promts_per_task'; did you mean prompts_per_task"),
        ("[compute]\nshardsize = 5", "unknown key 'compute.shardsize'; did you mean shard_size"),
        ("prompts_per_task = 0", "prompts_per_task = 0"),
        ('seed = "one"', "seed = 'one'"),
        ("[compute]\nworkers = -1", "compute.workers = -1"),
        ("[compute]\nthreads = 100000", "compute.threads = 100000"),
        ('[compute]\ndtype = "float8"', "compute.dtype = 'float8'"),
        ('wrong_answers = ["foil", "foil"]', "named twice: foil"),
        ("seed = true", "seed = True"),
        ("seed = 1.0", "seed = 1.0"),
        ('[compute]\nworkers = "2"', "compute.workers = '2'"),
        ('[compute]\ndevice = "gpu"', "compute.device = 'gpu'"),
        ('reference = "twin"', "reference = 'twin'"),
    ],
)
def test_what_a_study_cannot_mean_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_study(written(tmp_path, MINIMAL + line))
    assert said in str(refused.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(BadInput, match=r"(?s)tasks is missing.*out is missing.*unknown key 'sed'") as refused:
        make_study({"sed": 1})
    assert "did you mean seed" in str(refused.value)


@pytest.mark.parametrize("text", ["tasks = [", "\x00"])
def test_what_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match="is not valid TOML"):
        read_study(written(tmp_path, text))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none.toml' cannot be read: No such file or directory$"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "study.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"is not UTF-8: invalid start byte, at byte 0$"):
        read_study(tmp_path / "study.toml")


@given(st.text(min_size=1, max_size=12))
def test_no_unknown_key_is_ever_accepted(key: str) -> None:
    if key in Study.model_fields:
        return
    with pytest.raises(BadInput, match="unknown key"):
        make_study({"tasks": ["ioi"], "out": "x", key: 1})


@pytest.mark.parametrize(("device", "asked"), [("cuda", 0.5), ("cpu", 0.0)])
def test_each_worker_asks_for_its_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch, device: str, asked: float) -> None:
    options: dict[str, object] = {}
    monkeypatch.setattr(ray_pool.ray, "remote", lambda **given: options.update(given) or (lambda kind: MagicMock()))
    study = Study(tasks=("ioi",), out="results/ioi", compute=Compute(workers=2, gpus_per_worker=0.5))
    workers = workers_of(study, device)
    ray_pool.RayPool(study.out, workers, build=MagicMock())
    assert options["num_gpus"] == asked
