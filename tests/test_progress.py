from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from gbcd.run import progress
from gbcd.run.progress import Progress, ProgressDisplay, describe


def at(done: int, **changes: int) -> Progress:
    known = {"shards_done": done // 10, "shards": 10, "total": 100, "n_workers": 2, "workers_ready": 2}
    return Progress("Norms", "prompt", done=done, **{**known, **changes})


def test_the_rate_counts_only_what_this_run_computed() -> None:
    assert describe(at(60), seconds=10.0, computed=20) == "6/10 shards, 2 prompts/s, 20 s left, 2/2 workers"
    assert describe(at(60), seconds=0.0, computed=0) == "6/10 shards, 2/2 workers"
    assert describe(at(60), seconds=100.0, computed=20) == "6/10 shards, 0.2 prompts/s, 3 min 20 s left, 2/2 workers"


def test_trouble_and_workers_that_are_not_ready_are_shown() -> None:
    said = describe(at(60, retries=3, given_up=1, workers_ready=1), seconds=10.0, computed=0)
    assert said == "6/10 shards, 1/2 workers ready, 3 retries, 1 given up"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_plain_lines_every_so_often_and_at_the_end(clock: list[float]) -> None:
    written = io.StringIO()
    with ProgressDisplay(Console(file=written, width=40)) as display:
        for second in range(31):
            clock[0] = float(second)
            display.show(at(second))
        display.show(at(100, shards_done=9))  # computed, and not committed
        display.show(at(100))
    lines = written.getvalue().splitlines()
    assert [re.findall(r"Norms: (\d+) of 100", line) for line in lines] == [["0"], ["1"], ["11"], ["21"], ["100"]]
    assert "10/10 shards" in lines[-1]
    assert "\x1b" not in written.getvalue()


def test_planning_is_told_without_shards_and_the_bar_comes_with_it() -> None:
    written, seen = io.StringIO(), io.StringIO()
    with ProgressDisplay(Console(file=written)) as display:
        display.planning("ioi", 40, 40)
        display.planning("ioi", 3000, 1024)
    assert written.getvalue() == "Planning ioi: 1,024 of 3,000 prompts\n"
    with ProgressDisplay(Console(file=seen, force_terminal=True, width=100)) as display:
        display.say("said")
        assert "0/" not in seen.getvalue()
        display.planning("ioi", 3000, 1024)
    assert "1024/3000" in seen.getvalue()


def test_a_log_never_gets_the_same_line_again(clock: list[float]) -> None:
    written = io.StringIO()
    with ProgressDisplay(Console(file=written)) as display:
        for second in range(1000):
            clock[0] = float(second)
            display.show(at(7))
    assert len(written.getvalue().splitlines()) == 1


def test_time_before_a_worker_is_ready_does_not_count(clock: list[float]) -> None:
    written = io.StringIO()
    with ProgressDisplay(Console(file=written, width=200)) as display:
        for second, ready, done in ((0.0, 0, 0), (50.0, 0, 0), (51.0, 1, 0), (61.0, 1, 20)):
            clock[0] = second
            display.show(at(done, workers_ready=ready))
    assert "20 of 100 prompts, 2/10 shards, 2 prompts/s, 40 s left" in written.getvalue()
