from __future__ import annotations

import pytest

from gbcd.run.ray_pool import UNMEASURED, silence_limit


@pytest.mark.parametrize(
    ("longest", "limit"), [(None, UNMEASURED), (1.0, 600.0), (30.0, 600.0), (60.0, 1200.0), (3600.0, 72000.0)]
)
def test_a_silence_may_last_twenty_times_the_longest_and_ten_minutes_at_least(
    longest: float | None, limit: float
) -> None:
    assert silence_limit(longest) == limit
