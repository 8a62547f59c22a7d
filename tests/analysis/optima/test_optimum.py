"""The optimum of a slice: exact on a parabola, invariant where it must be; a reason where there is none."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.optima.parabola import mean_loss_by_rate
from hyperp.analysis.optima.two_stage import parabola_optima, parabola_optimum
from hyperp.analysis.table.slices import Slice

RATES = 2.0 ** np.arange(-8, -1)


def _slice(points: pd.DataFrame, diverged: tuple[float, ...] = ()) -> Slice:
    points = points.sort_values(["lr", "seed"])
    lr, seed, loss = (points[name].to_numpy() for name in ("lr", "seed", "loss"))
    return Slice({"optimizer": "muonh"}, {"tokens": 1}, lr, seed, loss, {}, diverged, None)


def _vertex(found: Optimum) -> float:
    assert found.log2_lr is not None
    return found.log2_lr


def _points(loss_of, rates: Sequence[float] | np.ndarray = RATES, seeds=(0,)) -> pd.DataFrame:
    return pd.DataFrame(
        [(r, s, loss_of(np.log2(r), s)) for r in rates for s in seeds], columns=["lr", "seed", "loss"]
    )


@pytest.mark.parametrize("vertex", [-6.3, -5.0, -4.49, -3.1])
def test_an_exact_parabola_gives_its_vertex(vertex):
    found = parabola_optimum(
        _slice(_points(lambda x, s: 3 + 0.02 * (x - vertex) ** 2 + 0.1 * s, seeds=(0, 1)))
    )
    assert found.state == "bracketed"
    np.testing.assert_allclose(_vertex(found), vertex, rtol=0, atol=1e-9)
    assert found.parabola is not None
    np.testing.assert_allclose(
        [found.parabola.floor, found.parabola.curvature], [3.05, 0.02], rtol=1e-8, atol=0
    )
    assert found.se is not None
    assert found.se < 1e-6


def test_the_window_is_centred_on_the_vertex_and_leaves_far_rates_out():
    # Beyond the window the loss explodes; a parabola over all rates would lean.
    def loss(x, s):
        return 3 + 0.02 * (x + 5.2) ** 2 + (np.exp(x + 3.9) if x > -3.6 else 0)

    found = parabola_optimum(_slice(_points(loss)))
    np.testing.assert_allclose(_vertex(found), -5.2, rtol=0, atol=1e-9)
    wide = parabola_optimum(_slice(_points(loss)), window=4.0)
    assert abs(_vertex(wide) + 5.2) > 0.2


def test_a_lucky_rate_does_not_pull_the_window_to_itself():
    fine = 2.0 ** np.arange(-8, -2, 0.25)
    points = _points(lambda x, s: 3 + 0.02 * (x + 5) ** 2 - 0.02 * (x == -5.75), rates=fine)
    assert points.sort_values("loss")["lr"].iloc[0] == 2.0**-5.75
    found = parabola_optimum(_slice(points))
    assert found.parabola is not None
    distance = np.log2(found.parabola.rates) - _vertex(found)
    assert -1.5 <= distance.min() < -1.25 < 1.25 < distance.max() <= 1.5


def test_a_missing_seed_does_not_move_the_best_rate():
    points = _points(lambda x, s: 3 + 0.02 * (x + 5) ** 2 + 0.5 * s, seeds=(0, 1))
    points = points[~((points["lr"] == 2.0**-4) & (points["seed"] == 1))]
    one = _slice(points)
    rates, means = mean_loss_by_rate(one.lr, one.seed, one.loss)
    assert rates[np.argmin(means)] == 2.0**-5
    np.testing.assert_allclose(_vertex(parabola_optimum(one)), -5, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("vertex", "diverged", "state", "add"),
    [
        (-9.0, (), "edge_low", (2.0**-9, 2.0**-10)),
        (-1.0, (), "edge_high", (2.0**-1, 1.0)),
        (-1.0, (2.0**0.999,), "edge_high", (2.0**-1.0003, 2.0**-0.0007)),
    ],
)
def test_an_optimum_at_the_edge_names_the_rates_to_add(vertex, diverged, state, add):
    found = parabola_optimum(_slice(_points(lambda x, s: 3 + 0.02 * (x - vertex) ** 2), diverged))
    assert found.state == state
    assert found.lr is None
    np.testing.assert_allclose(found.next_rates, add, rtol=1e-3, atol=0)


def test_rates_beyond_a_divergence_are_not_suggested():
    found = parabola_optimum(_slice(_points(lambda x, s: 3 - 0.1 * x), diverged=(0.5,)))
    assert all(RATES[-1] < rate < 0.5 for rate in found.next_rates)
    assert "0.5 diverged" in str(found.reason)


def test_a_slice_that_diverged_everywhere_asks_for_lower_rates():
    found = parabola_optimum(_slice(_points(lambda x, s: 1.0, rates=[]), diverged=(0.25, 0.5)))
    assert (found.state, found.next_rates) == ("too_few_rates", (0.0625, 0.125))


def test_two_rates_and_a_flat_top_are_named():
    few = parabola_optimum(_slice(_points(lambda x, s: 3.0 + x * 0, rates=RATES[:2])))
    assert (few.state, few.next_rates) == ("too_few_rates", (RATES[0] / 2, RATES[1] * 2))
    # One lucky low point among a curve that opens downwards over the window.
    dent = {-8: 3.0, -7: 3.2, -6: 3.0999, -5: 2.99, -4: 3.2, -3: 3.1, -2: 2.995}
    hump = parabola_optimum(_slice(_points(lambda x, s: dent[int(x)])), window=5)
    assert hump.state == "not_convex"
    assert "downwards" in str(hump.reason)
    assert parabola_optimum(_slice(_points(lambda x, s: 1.0, rates=[]))).state == "too_few_rates"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must .*got 0"),
        ({"min_rates": 2}, "min_rates must .*3, got 2"),
        ({"level": 1.0}, "level must .*got 1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        parabola_optima([], **options)


@settings(max_examples=40, deadline=None)
@given(
    optimum=st.floats(-7, -3),
    seed=st.integers(0, 10**6),
    octaves=st.floats(-6, 6),
    constant=st.floats(-1, 3),
    order=st.randoms(use_true_random=False),
)
def test_scaling_rates_scales_and_constants_and_order_do_nothing(
    make_curve, optimum, seed, octaves, constant, order
):
    points = make_curve(optimum, RATES, 2, np.random.default_rng(seed), noise=0.001, seed_shift=0.1)
    base = parabola_optimum(_slice(points))
    scaled = parabola_optimum(_slice(points.assign(lr=points["lr"] * 2.0**octaves)))
    raised = parabola_optimum(_slice(points.assign(loss=points["loss"] + constant)))
    shuffled = parabola_optimum(_slice(points.loc[order.sample(list(points.index), len(points))]))
    assert base.state == scaled.state == raised.state == shuffled.state
    if base.log2_lr is None:
        return
    np.testing.assert_allclose(_vertex(scaled) - octaves, base.log2_lr, rtol=0, atol=1e-6)
    np.testing.assert_allclose(_vertex(raised), base.log2_lr, rtol=0, atol=1e-6)
    assert shuffled.log2_lr == base.log2_lr
    errors = np.array([one.se for one in (base, scaled, raised)], dtype=float)
    np.testing.assert_allclose(errors, errors[0], rtol=1e-5, atol=1e-9)


def test_the_interval_covers_the_optimum_as_often_as_it_says(make_curve):
    """Symmetric basins, noise 0.2%, seeds that move the optimum by 0.1 octave: 8 slices pooled, 60 sweeps."""
    rng = np.random.default_rng(5)
    inside = count = 0
    for _ in range(60):
        truth = rng.uniform(-6, -4, 8)
        curves = [_slice(make_curve(t, RATES, 2, rng, skew=0, seed_shift=0.1, depth=0.015)) for t in truth]
        for t, found in zip(truth, parabola_optima(curves), strict=True):
            if found.low is not None and found.high is not None:
                count += 1
                inside += found.low < 2**t < found.high
    assert count > 450
    assert 0.92 < inside / count < 0.99


def test_errors_are_pooled_within_a_context_only(make_curve):
    rng = np.random.default_rng(1)
    quiet = [_slice(make_curve(-5.0, RATES, 2, rng, noise=0.0005)) for _ in range(3)]
    loud = [
        Slice({"optimizer": "adamw"}, {"tokens": 1}, s.lr, s.seed, s.loss, {}, (), None)
        for s in (_slice(make_curve(-5.0, RATES, 2, rng, noise=0.004)) for _ in range(3))
    ]
    found = parabola_optima([*quiet, *loud])
    alone = parabola_optima(quiet)
    assert [o.se for o in found[:3]] == [o.se for o in alone]
    assert min(o.se or 0 for o in found[3:]) > 3 * max(o.se or 9 for o in found[:3])
