"""Every method takes slices and returns an optimum for each, right where the truth is known."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.methods import POOL, Options, available, estimate
from hyperp.analysis.records import check_frame
from hyperp.analysis.slices import Slice, split

TRUTH = -4.7 - 0.5 * np.arange(-1, 4)  # log2 of the ladder's optima


def _where(found) -> np.ndarray:
    assert all(o.state == "bracketed" for o in found.optima)
    return np.array([o.log2_lr for o in found.optima])


@pytest.mark.parametrize(
    ("name", "off"), [("shared", 0.05), ("two-stage", 0.15), ("pool", 0.6), ("argmin", 0.6)]
)
def test_optima_of_skewed_basins_are_found(make_ladder, name, off):
    slices = split(check_frame(make_ladder(noise=2e-4)))
    assert np.abs(_where(estimate(name, slices, Options(by=("tokens",)))) - TRUTH).max() < off


@pytest.mark.parametrize("name", available())
def test_an_optimum_does_not_depend_on_the_order_of_slices_or_on_other_contexts(make_ladder, name):
    options = Options(by=("tokens",))
    slices = split(check_frame(make_ladder()))
    context = {**slices[0].context, "optimizer": "adamw"}
    other = split(check_frame(make_ladder(log2_at_64k=-8.0, octaves=(-12, -4), depth=0.03, context=context)))
    alone, mixed = estimate(name, slices, options), estimate(name, [*other, *slices[::-1]], options)
    np.testing.assert_allclose(_where(mixed)[:4:-1], _where(alone), rtol=0, atol=1e-6)


def test_rate_and_batch_are_found_together(make_ladder):
    """A valley that lies askew: the best rate grows with the square root of the batch."""
    rng = np.random.default_rng(0)
    frames = []
    for k, tokens in enumerate((2**15, 2**16, 2**17, 2**18)):
        x, b = (grid.ravel() for grid in np.meshgrid(np.arange(-9.0, -1.0), np.arange(7.0, 14.0)))
        u, v = x + 5 + 0.3 * k, b - 10.2 - 0.5 * k
        loss = (3 - 0.1 * k) * (1 + 0.01 * (u - 0.3 * v) ** 2 + 0.004 * v**2 + 2e-4 * rng.normal(size=len(x)))
        frames.append(pd.DataFrame({"tokens": tokens, "lr": 2.0**x, "batch_tokens": 2.0**b, "loss": loss}))
    over = ("lr", "batch_tokens")
    slices = split(check_frame(pd.concat(frames)), over=over)
    found = estimate("shared", slices, Options(over=over, by=("tokens",)))
    np.testing.assert_allclose(_where(found), -5 - 0.3 * np.arange(4), rtol=0, atol=0.05)
    batch = [o.also["batch_tokens"] for o in found.optima]
    np.testing.assert_allclose(batch, 10.2 + 0.5 * np.arange(4), rtol=0, atol=0.08)
    assert all(0 < o.also_se["batch_tokens"] < 0.1 for o in found.optima)
    for name in ("pool", "argmin"):
        rough = estimate(name, slices, Options(over=over))
        np.testing.assert_allclose([o.also["batch_tokens"] for o in rough.optima], batch, rtol=0, atol=0.8)
    with pytest.raises(ValueError, match="two-stage tunes lr alone, got --over lr,batch_tokens"):
        estimate("two-stage", slices, Options(over=over))


def test_a_pool_counts_every_run_near_the_best_once():
    lr = 2.0 ** np.arange(-8, 0)
    loss = 3 * (1 + np.array([0.05, 0.02, 0.9 * POOL, 0.0, 0.5 * POOL, 0.9 * POOL, 0.02, 0.05]))
    one = Slice({"optimizer": ""}, {"tokens": 1}, lr, np.zeros(8, dtype=int), loss, {}, (), None)
    (found,) = estimate("pool", [one], Options()).optima
    assert (found.runs, found.rates) == (4, tuple(lr[2:6]))
    np.testing.assert_allclose(found.log2_lr, -4.5, rtol=0, atol=1e-12)  # pyright: ignore
    (best,) = estimate("argmin", [one], Options()).optima
    assert best.log2_lr == -5


def test_a_flat_curve_has_no_optimum_by_any_method():
    lr = 2.0 ** np.arange(-8, 0)
    one = Slice({"optimizer": ""}, {"tokens": 1}, lr, np.zeros(8, dtype=int), np.full(8, 3.0), {}, (), None)
    assert all(estimate(name, [one], Options()).optima[0].state != "bracketed" for name in available())
