from __future__ import annotations

import io

import pytest
from rich.console import Console

from gbcd.run import progress
from gbcd.run.progress import ProgressDisplay, Standing, describe


def standing(prompts_done: int, **changes: int) -> Standing:
    known = {"shards": 10, "prompts": 100, "retries": 0, "quarantined": 0, "workers_ready": 1, "workers": 2}
    return Standing(shards_done=prompts_done // 10, prompts_done=prompts_done, **{**known, **changes})


def test_the_rate_counts_only_what_this_run_computed() -> None:
    said = describe(standing(60), seconds=10.0, computed=20)
    assert said == "6/10 shards, 2 prompts/s, 20 s left, 1/2 workers"
    assert describe(standing(60), seconds=0.0, computed=0) == "6/10 shards, 1/2 workers"


def test_trouble_is_shown() -> None:
    said = describe(standing(60, retries=3, quarantined=1), seconds=10.0, computed=0)
    assert said == "6/10 shards, 1/2 workers, 3 retries, 1 quarantined"


def test_a_log_gets_plain_lines_every_so_often_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    with ProgressDisplay(Console(file=written, width=40)) as display:
        for second in range(31):
            now[0] = float(second)
            display.show(standing(second))
        display.show(standing(100))
    lines = written.getvalue().splitlines()
    assert [line.split(" of ")[0] for line in lines] == ["0", "10", "20", "30", "100"]
    assert "\x1b" not in written.getvalue()
