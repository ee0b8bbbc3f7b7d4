"""What importing gbcd does to a process."""

from __future__ import annotations

import importlib
import os

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
