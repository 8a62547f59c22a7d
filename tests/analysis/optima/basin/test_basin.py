"""The shared basin: known shapes are recovered, states are named, errors and bootstraps are right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.basin import descent
from hyperp.analysis.optima.basin.fit import BasinFit, fit_basin
from hyperp.analysis.optima.basin.shape import (
    BasinShape,
    monomials,
    pack_curves,
    shape_gradient,
    shape_powers,
)
from hyperp.analysis.random_effects import meta_regression, t_quantile
from tests.oracles.baselines import argmin_fit, fit_parabolas, pool_fit, two_stage_fit
from tests.oracles.basin_bootstrap import paule_mandel_many, shared_bootstrap, two_stage_bootstrap

LN2 = np.log(2.0)


def sweep(
    rng: np.random.Generator,
    slices: int = 6,
    rates: int = 12,
    noise: float = 0.002,
    scatter: float = 0.0,
    exponent: float = -0.4,
    growth: float = 0.0,
) -> dict:
    """Basins like exponentials, which no cubic follows exactly, over a covariate's range of 16; natural logs.

    The curvature grows as the covariate to the power `growth`. Fewer than eight rates lie octaves apart about
    the optimum of the law, as on a grid of powers of two.
    """
    z = np.linspace(0.0, 4.0, slices) * LN2
    true = -6 * LN2 + exponent * (z - z.mean()) + scatter * LN2 * rng.standard_normal(slices)
    u = np.tile(np.linspace(-9.0, -3.0, rates), (slices, 1)) * LN2
    if rates < 8:
        middle = np.round(-6 + exponent * (z - z.mean()) / LN2)
        u = (middle[:, None] + np.arange(rates) - rates // 2) * LN2
    octaves = (u - true[:, None]) / LN2
    depth = 0.02 * np.exp(growth * (z - z.mean()))[:, None]
    loss = 3 * (1 + depth * (np.exp(0.45 * octaves) - 1 - 0.45 * octaves) / 0.45**2)
    loss *= 1 + noise * rng.standard_normal(loss.shape)
    data = {"U": u.ravel(), "loss": loss.ravel(), "slices": np.repeat(np.arange(slices), rates)}
    return {"z": z, "true": true, **data}


def fit(data: dict, **options) -> BasinFit:
    return fit_basin(data["U"], data["loss"], data["slices"], covariates=data["z"], **options)


def test_a_noiseless_cubic_comes_back():
    """But for the prior, which takes even a perfect curve for one with a little noise."""
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, 5)
    u = np.tile(np.linspace(-1.5, 1.5, 9), (5, 1))
    v = u - true[:, None]
    loss = rng.uniform(2, 4, 5)[:, None] * (1 + 0.02 * v**2 + 0.003 * v**3)
    basin = fit_basin(u.ravel(), loss.ravel(), np.repeat(np.arange(5), 9))
    assert basin.converged
    np.testing.assert_allclose(basin.optimum[:, 0], true, atol=5e-5, rtol=0)
    np.testing.assert_allclose(basin.shape.coef, [0.02, 0.003], atol=1e-6, rtol=1e-4)
    expected = 0.02 * 0.25 + 0.003 * 0.125
    np.testing.assert_allclose(basin.shape.penalty(np.array([0.5])), expected, atol=1e-9, rtol=1e-3)


def test_two_dimensions_with_all_cubic_terms_come_back():
    rng = np.random.default_rng(1)
    true = rng.uniform(-0.5, 0.5, (4, 2))
    grid = np.stack(np.meshgrid(np.linspace(-1.5, 1.5, 8), np.linspace(-1.5, 1.5, 7)), axis=-1).reshape(-1, 2)
    coef = np.array([0.02, -0.012, 0.018, 0.002, -0.001, 0.002, -0.0015])
    loss = 3 * (1 + monomials(grid - true[:, None], shape_powers(2)) @ coef)
    basin = fit_basin(np.tile(grid, (4, 1)), loss.ravel(), np.repeat(np.arange(4), len(grid)))
    np.testing.assert_allclose(basin.optimum, true, atol=5e-5, rtol=0)
    np.testing.assert_allclose(basin.shape.coef, coef, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_slope_is_the_derivative(p):
    rng = np.random.default_rng(2)
    powers, v = shape_powers(p), rng.normal(size=(5, p))
    coef, h = rng.normal(size=len(powers)), 1e-6
    for j in range(p):
        step = h * np.eye(p)[j]
        numeric = (monomials(v + step, powers) - monomials(v - step, powers)) @ coef / (2 * h)
        np.testing.assert_allclose(shape_gradient(v, powers, coef)[:, j], numeric, atol=1e-7, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-8, 8), seed=st.integers(0, 100))
def test_scaling_the_rates_scales_the_optima(shift, seed):
    data = sweep(np.random.default_rng(seed))
    base, moved = fit(data), fit({**data, "U": data["U"] + shift})
    np.testing.assert_allclose(moved.optimum, base.optimum + shift, atol=1e-5, rtol=0)
    np.testing.assert_allclose(moved.se, base.se, atol=1e-6, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100))
def test_order_of_rows_changes_no_bit(seed):
    rng = np.random.default_rng(seed)
    data = sweep(rng)
    order = rng.permutation(len(data["loss"]))
    mixed = {name: data[name][order] for name in ("U", "loss", "slices")}
    one, two = fit(data), fit({**data, **mixed})
    assert np.array_equal(one.optimum, two.optimum)
    assert np.array_equal(one.cov, two.cov)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), factor=st.floats(1e-3, 1e3))
def test_the_scale_of_a_slices_losses_changes_nothing(seed, factor):
    data = sweep(np.random.default_rng(seed))
    scaled = np.where(data["slices"] == 2, factor, 1.0) * data["loss"]
    np.testing.assert_allclose(fit({**data, "loss": scaled}).optimum, fit(data).optimum, atol=1e-7, rtol=0)


def test_a_weight_of_two_is_the_run_twice(monkeypatch):
    monkeypatch.setattr(descent, "CUBIC_SD", np.inf)  # the noise, and so the weight of a prior, differs
    monkeypatch.setattr(descent, "BEND_SD", np.inf)
    data = sweep(np.random.default_rng(3))
    weights = np.where(np.arange(len(data["loss"])) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(weights)), weights.astype(int))
    doubled = {name: data[name][twice] for name in ("U", "loss", "slices")}
    one, two = fit(data, weights=weights, scale=0.01), fit({**data, **doubled}, scale=0.01)
    np.testing.assert_allclose(one.optimum, two.optimum, atol=1e-8, rtol=0)


def test_errors_and_noise_are_as_large_as_they_say():
    fits = [(fit(d), d) for d in (sweep(np.random.default_rng([4, s]), noise=0.003) for s in range(60))]
    error = np.array([b.optimum[:, 0] - d["true"] for b, d in fits])
    said = np.sqrt(np.nanmean([b.cov[:, 0, 0] for b, _ in fits]))
    assert 0.75 < np.nanstd(error) / said < 1.15
    assert np.mean([b.noise or np.nan for b, _ in fits]) == pytest.approx(0.003, rel=0.1)
    assert abs(np.nanmean(error)) < 0.1 * LN2  # the bias of a cubic in a basin that is none


@pytest.mark.parametrize("slices", [5, 12])
def test_a_prediction_interval_at_eight_times_the_range_covers(slices):
    """benchmarks/bench_law.py prints the full table, beside the plain two-stage interval."""
    held = []
    for seed in range(80):
        rng = np.random.default_rng([5, seed])
        data = sweep(rng, slices=slices, noise=0.002, scatter=0.15)
        basin, z = fit(data), data["z"]
        used = basin.bracketed
        X = np.column_stack([np.ones(used.sum()), z[used]])
        law = meta_regression(basin.optimum[used, 0], basin.se[used, 0], X)
        x = np.array([1.0, z[-1] + 3 * LN2])
        truth = -6 * LN2 - 0.4 * (x[1] - z.mean()) + 0.15 * LN2 * rng.standard_normal()
        half = t_quantile(law.df, 0.95) * np.sqrt(x @ law.cov @ x + law.tau2 + law.unit_variance)
        held.append(abs(x @ law.beta - truth) <= half)
    assert 0.9 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("rates", [5, 12])
@pytest.mark.parametrize("growth", [0.0, 0.5])
def test_intervals_cover_where_the_curvature_follows_the_covariate(growth, rates):
    """With one curvature for all, the exponent's interval covers 45% at 12 rates and a growth of one."""
    ahead, exponent, bend = [], [], []
    for seed in range(60):
        rng = np.random.default_rng([17, seed])
        data = sweep(rng, slices=12, rates=rates, noise=0.002, scatter=0.15, growth=growth)
        basin, z = fit(data), data["z"]
        used = basin.bracketed
        X = np.column_stack([np.ones(used.sum()), z[used] - z.mean()])
        law = meta_regression(basin.optimum[used, 0], basin.se[used, 0], X)
        x = np.array([1.0, z[-1] + 3 * LN2 - z.mean()])
        truth = -6 * LN2 - 0.4 * x[1] + 0.15 * LN2 * rng.standard_normal()
        half = t_quantile(law.df, 0.95) * np.sqrt(x @ law.cov @ x + law.tau2 + law.unit_variance)
        low, high = law.interval()
        ahead.append(abs(x @ law.beta - truth) <= half)
        exponent.append(low[1] <= -0.4 <= high[1])
        bend.append(basin.bend[0])
    assert 0.88 <= np.mean(ahead) <= 0.995
    assert 0.88 <= np.mean(exponent) <= 0.995
    assert np.mean(bend) == pytest.approx(growth, abs=0.06)


def test_a_noiseless_law_of_the_curvature_comes_back():
    rng = np.random.default_rng(18)
    z = np.linspace(0.0, 3.0, 6)
    true = 0.2 - 0.3 * (z - z.mean())
    u = np.tile(np.linspace(-1.5, 1.5, 9), (6, 1))
    v, amplitude = u - true[:, None], np.exp(0.6 * (z - z.mean()))
    loss = 3 * (1 + amplitude[:, None] * (0.02 * v**2 + 0.003 * v**3))
    loss *= 1 + 1e-6 * rng.standard_normal(loss.shape)
    basin = fit_basin(u.ravel(), loss.ravel(), np.repeat(np.arange(6), 9), covariates=z)
    np.testing.assert_allclose(basin.bend, 0.6, atol=1e-2, rtol=0)
    np.testing.assert_allclose(basin.amplitude, amplitude, atol=0, rtol=0.02)
    np.testing.assert_allclose(basin.optimum[:, 0], true, atol=2e-3, rtol=0)
    expected = amplitude[5] * (0.02 * 0.4**2 + 0.003 * 0.4**3)
    found = basin.amplitude[5] * basin.shape.penalty(np.array([0.4]))
    np.testing.assert_allclose(found, expected, atol=0, rtol=0.05)


def test_an_optimum_beyond_the_rates_is_an_edge():
    data = sweep(np.random.default_rng(6), noise=0.001)
    keep = ~((data["slices"] == 0) & (data["U"] > data["true"][0] - 0.5))
    keep &= ~((data["slices"] == 5) & (data["U"] < data["true"][5] + 0.5))
    basin = fit({"z": data["z"], **{name: data[name][keep] for name in ("U", "loss", "slices")}})
    assert basin.states == ("edge_high", *["bracketed"] * 4, "edge_low")
    assert "above the highest rate" in str(basin.reasons[0])
    assert "below the lowest rate" in str(basin.reasons[5])
    np.testing.assert_allclose(basin.optimum[1:5, 0], data["true"][1:5], atol=0.15, rtol=0)


def test_two_rates_and_a_second_valley_are_named_and_leave():
    data = sweep(np.random.default_rng(7), noise=0.0005)
    rows = np.flatnonzero(data["slices"] == 1)
    data["loss"][rows[-2:]] = data["loss"][rows].min() * 1.01
    keep = ~np.isin(np.arange(len(data["loss"])), np.flatnonzero(data["slices"] == 4)[2:])
    basin = fit({"z": data["z"], **{name: data[name][keep] for name in ("U", "loss", "slices")}})
    expected = ["bracketed", "not_convex", "bracketed", "bracketed", "too_few_rates", "bracketed"]
    assert list(basin.states) == expected
    assert "falls again" in str(basin.reasons[1])
    assert "2 distinct rate(s)" in str(basin.reasons[4])
    assert np.isnan(basin.optimum[[1, 4]]).all()
    assert np.isfinite(basin.optimum[basin.bracketed]).all()


def test_a_slice_that_curves_down_in_one_direction_is_not_convex():
    rng = np.random.default_rng(8)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 7)), axis=-1).reshape(-1, 2)
    bowl = 3 * (1 + 0.01 * (grid**2).sum(axis=1))
    across = np.abs(grid[:, 1])
    ridge = np.where(across < 0.6, 0.008 - 0.012 * across, 0.001 * (across > 0.9))
    two_wells = 3 * (1 + 0.01 * grid[:, 0] ** 2 + ridge)
    loss = np.concatenate([bowl, bowl, bowl, two_wells]) * (1 + 0.0005 * rng.standard_normal(4 * len(grid)))
    basin = fit_basin(np.tile(grid, (4, 1)), loss, np.repeat(np.arange(4), len(grid)), scale=0.01)
    assert basin.states[:3] == ("bracketed",) * 3
    assert basin.states[3] == "not_convex"
    assert "negative" in str(basin.reasons[3])


def test_noise_alone_rarely_makes_a_second_valley():
    states = [
        s for seed in range(40) for s in fit(sweep(np.random.default_rng([9, seed]), noise=0.003)).states
    ]
    assert states.count("not_convex") <= 0.02 * len(states)


def test_a_penalty_is_zero_at_the_optimum_and_never_less_elsewhere():
    shape = BasinShape(shape_powers(1), np.array([0.02, 0.005]))
    du = np.linspace(-20, 20, 401)[:, None]
    penalty = shape.penalty(du)
    assert penalty[200] == 0
    assert (np.delete(penalty, 200) > 0).all()
    assert (np.diff(penalty[200:]) > 0).all()
    with pytest.raises(ValueError, match=r"du must .*1 columns.*got shape \(3, 2\)"):
        shape.penalty(np.zeros((3, 2)))


BAD = {
    "shape": ({"loss": np.ones(5)}, r"U, loss, slices and weights must .*got \(72, 1\), \(5,\)"),
    "nan": ({"U": np.full(72, np.nan)}, "U must .*got nan"),
    "negative": ({"loss": np.full(72, -1.0)}, "loss must .*got -1.0"),
    "weights": ({"weights": np.zeros(72)}, "weights must .*got 0.0"),
    "rows": ({"covariates": np.ones(3)}, r"covariates must .*\(6, q\).*got \(3, 1\)"),
    "scale": ({"scale": 0.0}, "scale must .*got 0.0"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(change, message):
    data = sweep(np.random.default_rng(10))
    arguments = {name: data[name] for name in ("U", "loss", "slices")}
    with pytest.raises(ValueError, match=message) as caught:
        fit_basin(**{**arguments, "covariates": data["z"], **change})
    assert "\n" not in str(caught.value)


def test_curves_without_a_bottom_are_refused():
    data = sweep(np.random.default_rng(11), noise=0)
    hills = {**data, "loss": 3 - 0.01 * (data["U"] - data["U"].mean()) ** 2}
    with pytest.raises(Refusal, match="bottom"):
        fit(hills)


def test_bootstrap_spread_is_the_standard_error_and_three_steps_are_enough():
    data = sweep(np.random.default_rng(12), slices=12, scatter=0.1)
    basin = fit(data)
    X = np.column_stack([np.ones(12), data["z"]])
    boot = shared_bootstrap(basin, [X], 1000, seed=1)
    law = meta_regression(basin.optimum[:, 0], basin.se[:, 0], X)
    # The shape is refitted too, which moves all optima together and is no part of a slice's own error.
    np.testing.assert_allclose(boot.optimum.std(axis=0)[:, 0], basin.se[:, 0], atol=0, rtol=0.3)
    np.testing.assert_allclose(boot.beta[0].std(axis=0), law.se, atol=0, rtol=0.15)
    np.testing.assert_allclose(boot.beta[0].mean(axis=0), law.beta, atol=0, rtol=0.02)
    slow = shared_bootstrap(basin, [X], 200, seed=1, steps=30)
    fast = shared_bootstrap(basin, [X], 200, seed=1)
    assert np.abs(slow.optimum - fast.optimum).max() < 0.01 * basin.se.min()
    again = shared_bootstrap(basin, [X], 200, seed=1)
    assert np.array_equal(fast.beta[0], again.beta[0])
    assert boot.predict([np.array([1.0, 5.0])], np.random.default_rng(0)).shape == (1000, 1)
    with pytest.raises(ValueError, match=r"1 designs of 12 rows.*got"):
        shared_bootstrap(basin, [X[:5]])
    with pytest.raises(ValueError, match=r"resamples must .*got 0"):
        shared_bootstrap(basin, [X], 0)


def test_a_bootstrap_over_rate_and_batch_leaves_edges_out():
    rng = np.random.default_rng(13)
    grid = np.stack(np.meshgrid(np.linspace(-2, 2, 9), np.linspace(-2, 2, 8)), axis=-1).reshape(-1, 2)
    true = np.column_stack([np.linspace(-0.6, 0.6, 6), np.linspace(-0.3, 0.5, 6)])
    true[5] = (2.4, 0.0)
    coef = np.array([0.02, -0.012, 0.018, 0.002, 0.0, 0.002, 0.0])
    loss = 3 * (1 + monomials(grid - true[:, None], shape_powers(2)) @ coef)
    loss *= 1 + 0.001 * rng.standard_normal(loss.shape)
    basin = fit_basin(np.tile(grid, (6, 1)), loss.ravel(), np.repeat(np.arange(6), len(grid)))
    assert basin.states == (*["bracketed"] * 5, "edge_high")
    X = np.column_stack([np.ones(6), np.arange(6.0)])
    boot = shared_bootstrap(basin, [X, X], 400)
    assert boot.optimum.shape == (400, 5, 2)
    np.testing.assert_allclose(boot.optimum.std(axis=0), basin.se[:5], atol=0, rtol=0.4)


def test_two_stage_bootstrap_spread_is_the_delta_method():
    data = sweep(np.random.default_rng(14), slices=12, noise=0.001)
    bowls = fit_parabolas(pack_curves(data["U"], data["loss"], data["slices"]))
    boot = two_stage_bootstrap(bowls, [np.column_stack([np.ones(12), data["z"]])], 1000)
    said = np.sqrt(bowls.cov[bowls.bowl, 0, 0])
    np.testing.assert_allclose(boot.optimum.std(axis=0)[:, 0], said, atol=0, rtol=0.25)


def test_many_regressions_at_once_are_each_the_one():
    rng = np.random.default_rng(15)
    X = np.column_stack([np.ones(9), rng.normal(size=9)])
    v = rng.uniform(0.001, 0.05, 9)
    y = X @ [1.0, -0.5] + rng.normal(size=(20, 9)) * np.linspace(0.02, 0.4, 20)[:, None]
    beta, tau2 = paule_mandel_many(y, v, X)
    for row, b, t in zip(y, beta, tau2, strict=True):
        one = meta_regression(row, np.sqrt(v), X)
        np.testing.assert_allclose(b, one.beta, atol=1e-8, rtol=1e-6)
        assert t == pytest.approx(one.tau2, rel=1e-4, abs=1e-10)


def test_baselines_recover_a_law_on_a_fine_noiseless_grid():
    data = sweep(np.random.default_rng(16), rates=601, noise=0.0)
    curves = pack_curves(data["U"], data["loss"], data["slices"])
    Z = data["z"][:, None]
    (lowest,) = argmin_fit(curves, Z)
    (pooled,) = pool_fit(curves, Z)
    (vertex,) = two_stage_fit(fit_parabolas(curves), Z)
    for line in (lowest, pooled, vertex):
        assert line.beta[1] == pytest.approx(-0.4, abs=0.01)
    # A parabola leans to the shallow side of a basin, and so does the middle of the runs near the best.
    assert lowest.predict(Z[2]) == pytest.approx(data["true"][2], abs=0.01)
    assert pooled.predict(Z[2]) < data["true"][2]
    assert vertex.predict(Z[2]) < data["true"][2]
    with pytest.raises(ValueError, match=r"columns \[0, 1\] .*collinear"):
        argmin_fit(curves, np.column_stack([Z, 2 * Z]))
