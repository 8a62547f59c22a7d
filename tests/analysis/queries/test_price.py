"""The price of a rate by the basin: its value, and an interval from displacement and basin together."""

import math

import numpy as np
import pytest

from hyperp.analysis.law.records import BasinRecord
from hyperp.analysis.queries.price import BasinPrice

WIDE = {"width": 256}


def _price(curvature: float = 0.0, skew: float = 0.0, tail: float = 0.0, growth: float = 0.0) -> BasinPrice:
    """A skewed basin that steepens with the square root of the width, with these standard errors."""
    basin = BasinRecord(powers=[[2]], coef=[0.01], bend={"width": (0.5, 64.0)}, skew=0.8, tail=0.2)
    return BasinPrice(basin, np.diag(np.square([curvature, skew, tail, growth])))


def test_the_price_is_that_of_the_basin_at_the_sizes():
    found = _price()
    at_middle, wide = found.percent({"width": 64}, -1.0), found.percent(WIDE, -1.0)
    np.testing.assert_allclose(wide, 2 * at_middle, rtol=1e-9, atol=0)
    assert found.percent(WIDE, -1.0) > found.percent(
        WIDE, 1.0
    )  # the optimum below the rate is the steep side
    tiny = found.percent({"width": 64}, 1e-3) / (1e-3 * math.log(2)) ** 2
    np.testing.assert_allclose(tiny, 100 * 0.01, rtol=1e-2, atol=0)


def test_a_known_basin_costs_what_it_says_at_the_ends():
    found = _price()
    low, high = found.percent_range(WIDE, -1.0, -1.5, -0.6, 0.95)
    assert low is not None
    assert high is not None
    np.testing.assert_allclose(low, found.percent(WIDE, -0.6), rtol=1e-9, atol=0)
    np.testing.assert_allclose(high, found.percent(WIDE, -1.5), rtol=1e-9, atol=0)
    assert found.percent_range(WIDE, 0.1, -1.5, 0.6, 0.95)[0] == 0
    assert found.percent_range(WIDE, -1.0, None, -0.6, 0.95) == (None, None)


@pytest.mark.parametrize(
    ("name", "size"), [("curvature", 0.1), ("growth", 0.1), ("skew", 0.2), ("tail", 0.2)]
)
def test_an_error_of_the_basin_widens_the_interval_as_much_as_it_moves_the_price(name, size):
    found = _price(**{name: size})
    low, high = found.percent_range(WIDE, -2.0, -2.0, -2.0, 0.95)
    changes = {
        "curvature": {"coef": [0.01 * math.exp(size)]},
        "growth": {"bend": {"width": (0.5 + size, 64.0)}},
        "skew": {"skew": 0.8 + size},
        "tail": {"tail": 0.2 * math.exp(size)},
    }
    moved = BasinPrice(found.basin.model_copy(update=changes[name])).percent(WIDE, -2.0)
    middle = found.percent(WIDE, -2.0)
    assert low is not None
    assert high is not None
    np.testing.assert_allclose(
        math.log(high / middle) / 1.96, abs(math.log(moved / middle)), rtol=0.1, atol=1e-3
    )
    np.testing.assert_allclose(low * high, middle**2, rtol=1e-6, atol=0)
