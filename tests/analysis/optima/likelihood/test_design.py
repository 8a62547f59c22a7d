"""A composite design has the moments of a standard normal."""

import numpy as np
import pytest

from hyperp.analysis.optima.likelihood.design import composite_design


@pytest.mark.parametrize("dimension", range(1, 9))
def test_moments_of_a_standard_normal(dimension):
    points, weights = composite_design(dimension)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12, atol=0)
    np.testing.assert_allclose(weights @ points, 0.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose((weights * points.T) @ points, np.eye(dimension), rtol=0, atol=1e-12)
    # Main effects are not mixed up with squares or products.
    third = np.einsum("h,hi,hj,hk->ijk", weights, points, points, points)
    np.testing.assert_allclose(third, 0.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(points[0], 0.0, rtol=0, atol=0)
