from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.run.patience import FLOOR, UNMEASURED, Patience
from gbcd.run.workers import Job


def job(batch_size: int = 8) -> Job:
    return Job(0, 1, batch_size)


def test_until_a_shard_is_committed_a_worker_has_a_day() -> None:
    assert Patience().limit(job()) == UNMEASURED


@pytest.mark.parametrize(("longest", "limit"), [(1.0, 600.0), (30.0, 600.0), (60.0, 1200.0), (3600.0, 72000.0)])
def test_a_shard_may_take_twenty_times_the_longest_and_ten_minutes_at_least(longest: float, limit: float) -> None:
    patience = Patience()
    for seconds in (0.5, longest, 0.1):
        patience.committed(job(), seconds)
    assert patience.limit(job()) == limit


def test_a_smaller_batch_has_more_time_and_a_larger_one_no_less() -> None:
    patience = Patience()
    patience.committed(job(8), 60.0)
    assert [patience.limit(job(batch_size)) for batch_size in (16, 8, 4, 1)] == [1200.0, 1200.0, 2400.0, 9600.0]


def test_the_reason_says_how_long_and_what_the_limit_was() -> None:
    patience = Patience()
    patience.committed(job(), 45.0)
    assert patience.exhausted(job(), 899.0) is None
    assert patience.exhausted(job(), 905.0) == (
        "it was silent for 15 min 05 s, over the limit of 15 min 00 s for a shard in a run that has committed no shard "
        "that took longer than 45 s"
    )
    assert "committed nothing" in (Patience().exhausted(job(), UNMEASURED + 1) or "")


@given(st.lists(st.tuples(st.integers(1, 256), st.floats(0, 1e5)), min_size=1, max_size=20), st.integers(1, 256))
def test_what_is_as_quick_as_a_committed_shard_is_never_given_up(shards: list[tuple[int, float]], batch: int) -> None:
    patience = Patience()
    for batch_size, seconds in shards:
        patience.committed(job(batch_size), seconds)
    slowest = max(seconds * max(1.0, batch_size / batch) for batch_size, seconds in shards)
    assert patience.exhausted(job(batch), slowest) is None
    assert patience.limit(job(batch)) >= FLOOR
