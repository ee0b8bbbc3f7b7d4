"""What importing gbcd does to a process."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

import gbcd


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_give_their_core_up_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, found: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    importlib.reload(gbcd)
    assert os.environ["OMP_WAIT_POLICY"] == found


def test_whoever_asks_for_help_or_queries_results_does_not_wait_for_torch() -> None:
    code = "import sys, gbcd.cli; print(*{'torch', 'transformers', 'ray', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
