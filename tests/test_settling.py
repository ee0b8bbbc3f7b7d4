from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_prompts import random_prompts

from gbcd.run import settling
from gbcd.run.settling import batch_size, seconds_per_prompt, shard_size


def test_a_batch_is_fixed_and_smaller_for_long_prompts() -> None:
    assert [batch_size("cpu", longest) for longest in (1, 20, 256, 300, 1024, 10**6)] == [32, 32, 32, 16, 8, 1]
    assert batch_size("cuda", 20) == 256


@given(
    n_prompts=st.integers(1, 10**6), batch=st.integers(1, 256), workers=st.integers(0, 64),
    seconds=st.none() | st.floats(1e-6, 1e3), row=st.integers(1, 10**6),
)  # fmt: skip
def test_a_shard_is_whole_batches_and_no_longer_than_a_minute(
    n_prompts: int, batch: int, workers: int, seconds: float | None, row: int
) -> None:
    size = shard_size(n_prompts, batch, workers, seconds, row)
    assert size % batch == 0
    if size > batch:
        assert seconds is None or size * seconds <= settling.SHARD_SECONDS
        assert size * row <= settling.SHARD_BYTES
        assert -(-n_prompts // size) >= settling.SHARDS_PER_WORKER * max(1, workers)


@pytest.mark.parametrize(
    ("workers", "seconds", "size"), [(2, 0.01, 1248), (2, 1.0, 32), (4, 0.01, 608), (0, 0.1, 576), (2, None, 1248)]
)
def test_a_minute_of_work_or_four_shards_for_each_worker(workers: int, seconds: float | None, size: int) -> None:
    assert shard_size(10_000, 32, workers, seconds, 8) == size


def test_a_slow_model_is_timed_on_a_few_prompts_and_a_quick_one_on_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    sizes: list[int] = []

    def taking(each: float, once: float):
        def compute(prompts) -> None:
            sizes.append(len(prompts))
            clock[0] += once * (len(sizes) == 1) + each * len(prompts)

        return compute

    batch = random_prompts([4] * 16)
    assert seconds_per_prompt(taking(1.0, 50.0), batch) == pytest.approx(1.0)
    assert sizes == [1, 4]
    sizes.clear()
    assert seconds_per_prompt(taking(0.01, 50.0), batch) == pytest.approx(0.01)
    assert sizes == [1, 4, 16]
