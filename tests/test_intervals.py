import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gbcd.analysis.intervals import MAX_CLUSTERS, ClusteredMoments, Clusters, resampled_means


def moments_of(values, templates, *splits):
    """Of the prompts, added piece by piece, each with numbers of its own for its templates."""
    moments, clusters = ClusteredMoments(), Clusters()
    values = np.asarray(values, dtype=np.float64)
    for piece in np.split(np.arange(len(templates)), splits):
        names, codes = np.unique([templates[index] for index in piece], return_inverse=True)
        if len(piece):
            part = ClusteredMoments.of(values[piece], codes, len(names))
            moments.add(part, clusters.numbers(names.tolist()))
    return moments


def test_hand_computed_clusters():
    # Templates a: 1, 3 (sum 4), b: 5 (sum 5), c: 7 (sum 7); mean 4; scores -4, 1, 3; V = 3/2 * 26 / 16
    estimate = moments_of([[1.0], [3.0], [5.0], [7.0]], ["a", "a", "b", "c"]).estimate()
    half = stats.t.ppf(0.975, 2) * np.sqrt(1.5 * 26 / 16)
    assert estimate.mean[0] == pytest.approx(4)
    assert estimate.std[0] == pytest.approx(np.std([1, 3, 5, 7], ddof=1))
    assert estimate.ci_low[0] == pytest.approx(4 - half)
    assert estimate.ci_high[0] == pytest.approx(4 + half)


@given(st.integers(2, 90), st.integers(0, 2**32 - 1), st.booleans())
def test_one_prompt_a_template_and_one_template_are_the_ordinary_interval(n, seed, alone):
    values = np.random.default_rng(seed).normal(size=(n, 1))
    estimate = moments_of(values, ["t"] * n if alone else [str(i) for i in range(n)]).estimate()
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values[:, 0]))
    assert (estimate.ci_low[0], estimate.ci_high[0]) == pytest.approx((low, high))


@given(st.integers(2, 40), st.data())
def test_merging_does_not_change_the_estimate(n, data):
    values = np.random.default_rng(n).normal(loc=1e6, size=(n, 6))
    values[:, 0] -= 1e6
    templates = [f"t{i % 4}" for i in range(n)]
    one, other = moments_of(values, templates), moments_of(values, templates, data.draw(st.integers(0, n)))
    for whole, parts in zip(one.estimate(), other.estimate(), strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-9)
    np.testing.assert_allclose(one.estimate().std, values.std(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_array_equal(one.sign_agreement, other.sign_agreement)
    agreeing = np.sign(values[:, 0]) == np.sign(values[:, 0].mean())
    assert one.sign_agreement[0] == pytest.approx(agreeing.mean())


def test_intervals_cover_at_the_promised_rate_where_templates_differ_and_percentiles_of_draws_do_not():
    rng, covered, naive, percentile = np.random.default_rng(0), 0, 0, 0
    for _ in range(1000):
        values = (rng.normal(size=8)[:, None] + rng.normal(size=(8, 20))).reshape(-1, 1)
        moments = moments_of(values, [f"t{i // 20}" for i in range(160)])
        estimate = moments.estimate()
        covered += int(estimate.ci_low[0] <= 0 <= estimate.ci_high[0])
        naive += int(abs(values.mean()) <= 1.96 * stats.sem(values[:, 0]))
        low, high = np.quantile(resampled_means(moments.sums, moments.sizes, 400, seed=0), [0.025, 0.975])
        percentile += int(low <= 0 <= high)
    assert 930 <= covered <= 970
    assert naive < 700
    assert 860 <= percentile <= 900


def test_the_spread_of_draws_of_templates_is_the_error_of_the_formula():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10, 1, 3)) + rng.normal(size=(10, 20, 3))
    moments = moments_of(values.reshape(-1, 3), [f"t{i // 20}" for i in range(200)])
    error = (moments.estimate().ci_high - moments.mean) / stats.t.ppf(0.975, 9)
    draws = resampled_means(moments.sums, moments.sizes, 20_000, seed=0)
    np.testing.assert_allclose(draws.std(axis=0) * np.sqrt(10 / 9), error, rtol=0.03)
    assert resampled_means(moments.sums[:1], moments.sizes[:1], 10, seed=0) is None


def test_templates_beyond_the_limit_share_clusters():
    n = 3 * MAX_CLUSTERS
    moments = moments_of(np.random.default_rng(0).normal(size=(n, 1)), [str(i) for i in range(n)], 50, 150)
    assert moments.sizes.sum() == n
    assert len(moments.sizes) == MAX_CLUSTERS
    assert np.isfinite(moments.estimate().ci_low).all()


def test_one_prompt_has_no_interval():
    estimate = moments_of([[2.0]], ["a"]).estimate()
    assert estimate.mean[0] == 2.0
    assert np.isnan([estimate.std[0], estimate.ci_low[0], estimate.ci_high[0]]).all()
