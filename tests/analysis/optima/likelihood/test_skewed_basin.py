"""The skewed basin solves its equation, and becomes a parabola and a parabola's kin at its limits."""

import numpy as np
import pytest

from hyperp.analysis.optima.likelihood.basin import excess_slope, skewed_excess, two_powers

V = np.linspace(-3, 3, 61)


@pytest.mark.parametrize(("skew", "tail"), [(0.9, 0.4), (-0.5, 0.2), (0.0, 0.5), (1.5, 0.01)])
def test_it_solves_its_equation(skew, tail):
    h = 1e-3
    s = skewed_excess(V, skew, tail)
    second = (skewed_excess(V + h, skew, tail) - 2 * s + skewed_excess(V - h, skew, tail)) / h**2
    slope = (skewed_excess(V + h, skew, tail) - skewed_excess(V - h, skew, tail)) / (2 * h)
    np.testing.assert_allclose(second, 1 + skew * slope + tail * s, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(excess_slope(V, skew, tail), slope, rtol=1e-4, atol=1e-6)
    assert skewed_excess(np.zeros(1), skew, tail) == 0
    assert (s[V != 0] > 0).all()


def test_without_skew_and_tail_it_is_a_parabola():
    np.testing.assert_allclose(skewed_excess(V, 0.0, 1e-3), V**2 / 2, rtol=1e-3, atol=1e-12)


def test_the_powers_have_the_skew_as_difference_and_the_tail_as_product():
    for skew in (-2.0, -1e-9, 0.0, 0.7):
        a, b = two_powers(skew, 0.3)
        np.testing.assert_allclose([a - b, a * b], [skew, 0.3], rtol=1e-12, atol=1e-12)


def test_a_mirrored_basin_has_the_opposite_skew():
    np.testing.assert_allclose(skewed_excess(V, 0.8, 0.3), skewed_excess(-V, -0.8, 0.3), rtol=1e-12, atol=0)
