from __future__ import annotations

import pytest

from gbcd.run.timeouts import UNMEASURED, Timeout


def test_before_there_is_any_progress_a_worker_has_a_day() -> None:
    assert Timeout().limit == UNMEASURED


@pytest.mark.parametrize(("longest", "limit"), [(1.0, 600.0), (30.0, 600.0), (60.0, 1200.0), (3600.0, 72000.0)])
def test_a_silence_may_last_twenty_times_the_longest_and_ten_minutes_at_least(longest: float, limit: float) -> None:
    timeout = Timeout()
    for silence in (0.5, longest, 0.1):
        timeout.progressed(silence)
    assert timeout.limit == limit
    assert timeout.exceeded(limit) is None


def test_the_reason_says_how_long_and_what_the_limit_was() -> None:
    timeout = Timeout()
    timeout.progressed(45.0)
    said = "it made no progress for 15 min 05 s; the limit in this run is 15 min 00 s"
    assert timeout.exceeded(905.0) == said
