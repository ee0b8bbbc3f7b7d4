"""What importing gbcd does to a process; and that it works from a wheel, in which what it needs travels."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gbcd

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("given", "found", "spins"), [(None, "PASSIVE", "10000"), ("ACTIVE", "ACTIVE", None)])
def test_threads_that_wait_give_their_core_up_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, found: str, spins: str | None
) -> None:
    for name, value in (("OMP_WAIT_POLICY", given), ("GOMP_SPINCOUNT", None)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    importlib.reload(gbcd)
    assert (os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT")) == (found, spins)


def test_whoever_asks_for_help_or_queries_results_does_not_wait_for_torch() -> None:
    code = "import sys, gbcd.cli; print(*{'torch', 'transformers', 'ray', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's contents and nothing else."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("gbcd-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


def test_a_study_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = subprocess.run(
        [sys.executable, "-c", "import gbcd; print(gbcd.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(installed))
    study = ["--task", "ioi", "--model", "reference", "--prompts", "24", "--wrong-answer", "foil"]
    flags = [*study, "--workers", "0", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "gbcd", "run", *flags], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.parquet").is_file()
