from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gbcd.run.driver import MAX_FAILURES, Retry, retry
from gbcd.run.workers import Failed, FailureKind, Job

KINDS: tuple[FailureKind, ...] = ("error", "out_of_memory", "worker_lost", "node_lost", "returned")


def failed(kind: FailureKind, batch_size: int = 8) -> Failed:
    return Failed(Job(3, 1, batch_size), kind, "why")


def test_an_error_is_repeated_as_it_was_then_sifted_and_then_given_up() -> None:
    assert retry(failed("error"), 0) == Retry(Job(3, 2, 8), 1)
    assert retry(failed("error"), 1) == Retry(Job(3, 2, 8), 2)
    assert retry(failed("error"), 2) == Retry(Job(3, 2, 8, sift=True), 3)
    assert retry(Failed(Job(3, 4, 8, sift=True), "error", "why"), 3) == Retry(None, 4)


def test_out_of_memory_halves_the_batch_and_counts_only_for_a_single_prompt() -> None:
    assert retry(failed("out_of_memory"), 0) == Retry(Job(3, 2, 4), 0)
    assert retry(failed("out_of_memory", batch_size=1), 0) == Retry(Job(3, 2, 1), 1)
    assert retry(failed("out_of_memory", batch_size=1), 2) == Retry(Job(3, 2, 1, sift=True), 3)


def test_a_lost_worker_first_repeats_the_same_bits_then_halves() -> None:
    assert retry(failed("worker_lost"), 0) == Retry(Job(3, 2, 8), 1)
    assert retry(failed("worker_lost"), 1) == Retry(Job(3, 2, 4), 2)
    assert retry(failed("worker_lost"), 2) == Retry(None, 3)


def test_what_the_shard_did_not_cause_is_not_counted() -> None:
    assert retry(failed("node_lost"), 2) == Retry(Job(3, 2, 8), 2)
    assert retry(failed("returned"), 2) == Retry(Job(3, 2, 8), 2)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=60), st.integers(1, 512))
def test_whatever_happens_batches_stay_positive_and_tries_end(kinds: list[FailureKind], batch_size: int) -> None:
    job, failures = Job(0, 1, batch_size), 0
    for kind in kinds:
        decision = retry(Failed(job, kind, ""), failures)
        assert failures <= decision.failures <= MAX_FAILURES + job.sift
        if decision.job is None:
            assert decision.failures == MAX_FAILURES + job.sift
            return
        assert decision.job.sift == (decision.failures >= MAX_FAILURES)
        assert 1 <= decision.job.batch_size <= job.batch_size
        assert decision.job.attempt == job.attempt + 1
        job, failures = decision.job, decision.failures
