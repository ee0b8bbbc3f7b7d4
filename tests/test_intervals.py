import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gbcd.analysis.intervals import MAX_CLUSTERS, ClusteredMoments


def moments_of(values, templates, split=None):
    moments = ClusteredMoments()
    for piece in np.split(np.arange(len(templates)), [] if split is None else [split]):
        moments.add(np.asarray(values, dtype=np.float64)[..., piece], [templates[i] for i in piece])
    return moments


def test_hand_computed_clusters():
    # Templates a: 1, 3 (sum 4), b: 5 (sum 5), c: 7 (sum 7); mean 4; scores -4, 1, 3; V = 3/2 * 26 / 16
    estimate = moments_of([[1.0, 3.0, 5.0, 7.0]], ["a", "a", "b", "c"]).estimate()
    half = stats.t.ppf(0.975, 2) * np.sqrt(1.5 * 26 / 16)
    assert estimate.mean[0] == pytest.approx(4)
    assert estimate.std[0] == pytest.approx(np.std([1, 3, 5, 7], ddof=1))
    assert estimate.ci_low[0] == pytest.approx(4 - half)
    assert estimate.ci_high[0] == pytest.approx(4 + half)


@given(st.integers(2, 90), st.integers(0, 2**32 - 1), st.booleans())
def test_one_prompt_a_template_and_one_template_are_the_ordinary_interval(n, seed, alone):
    values = np.random.default_rng(seed).normal(size=(1, n))
    estimate = moments_of(values, ["t"] * n if alone else [str(i) for i in range(n)]).estimate()
    low, high = stats.t.interval(0.95, n - 1, values[0].mean(), stats.sem(values[0]))
    assert (estimate.ci_low[0], estimate.ci_high[0]) == pytest.approx((low, high))


@given(st.integers(2, 40), st.data())
def test_merging_does_not_change_the_estimate(n, data):
    values = np.random.default_rng(n).normal(loc=1e6, size=(2, 3, n))
    templates = [f"t{i % 4}" for i in range(n)]
    whole = moments_of(values, templates).estimate()
    parts = moments_of(values, templates, split=data.draw(st.integers(0, n))).estimate()
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    np.testing.assert_allclose(whole.std, values.std(axis=-1, ddof=1), rtol=1e-6)


def test_intervals_cover_at_the_promised_rate_when_templates_differ():
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        values = (rng.normal(size=8)[:, None] + rng.normal(size=(8, 20))).reshape(1, -1)
        estimate = moments_of(values, [f"t{i // 20}" for i in range(160)]).estimate()
        covered += int(estimate.ci_low[0] <= 0 <= estimate.ci_high[0])
        naive += int(abs(values.mean()) <= 1.96 * stats.sem(values[0]))
    assert 930 <= covered <= 970
    assert naive < 700


def test_templates_beyond_the_limit_share_clusters():
    n = 3 * MAX_CLUSTERS
    moments = moments_of(np.random.default_rng(0).normal(size=(1, n)), [str(i) for i in range(n)])
    assert moments.n_templates == n
    assert len(moments._sums) == MAX_CLUSTERS
    assert np.isfinite(moments.estimate().ci_low).all()


def test_one_prompt_has_no_interval():
    estimate = moments_of([[2.0]], ["a"]).estimate()
    assert estimate.mean[0] == 2.0
    assert np.isnan([estimate.std[0], estimate.ci_low[0], estimate.ci_high[0]]).all()
