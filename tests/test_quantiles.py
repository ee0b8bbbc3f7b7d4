import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.analysis.quantiles import LogHistogram


@given(st.integers(1, 200), st.floats(-12, 4), st.integers(0, 1000), st.sampled_from([0.05, 0.5, 0.95]))
def test_quantiles_are_within_half_a_bin(n, magnitude, seed, level):
    values = np.exp(np.random.default_rng(seed).normal(magnitude, 2, size=(3, n)))
    histogram = LogHistogram(3)
    histogram.add(values[:, : n // 2])
    histogram.add(values[:, n // 2 :])
    exact = np.quantile(values, level, axis=1, method="inverted_cdf")
    np.testing.assert_allclose(histogram.quantile(level), exact, rtol=0.045)


def test_values_off_the_scale():
    histogram = LogHistogram(2)
    histogram.add(np.array([[0.0, 0.0, 1.0], [1e-30, 1e-30, 1e30]]))
    assert histogram.quantile(0.5).tolist() == [0.0, 0.0]
    assert histogram.quantile(0.95) == pytest.approx([1.0, 2.0**16], rel=0.05)
