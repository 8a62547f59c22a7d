"""The integrated law: its scatter, its parts, and what priors and units may change."""

import numpy as np
import pytest

from hyperp.analysis.law.hierarchy import estimate
from hyperp.analysis.law.hierarchy.estimate import LawPriors, fit_hierarchy
from hyperp.analysis.law.hierarchy.law import _scatter_interval
from hyperp.analysis.optima.likelihood.tables import tables_of_optima


def optima(slices=12, scatter=0.1, error=0.02, slope=-0.4, rng_seed=0):
    rng = np.random.default_rng(rng_seed)
    z = np.linspace(0, np.log(64), slices)
    m = -4 + slope * z + scatter * rng.normal(size=slices)
    return z[:, None], tables_of_optima(m, np.full(slices, error), np.zeros(slices))


def test_a_few_points_at_a_time_give_the_same_law(monkeypatch):
    logs, tables = optima()
    whole = fit_hierarchy(tables, logs, ("tokens",), LawPriors())
    slices = len(logs)
    monkeypatch.setattr(estimate, "POINTS", 2 * slices)
    parts = fit_hierarchy(tables, logs, ("tokens",), LawPriors())
    np.testing.assert_allclose(parts.posterior.weight, whole.posterior.weight, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(parts.posterior.mean, whole.posterior.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(parts.others_mean, whole.others_mean, rtol=1e-3, atol=1e-3)


def test_the_scatter_is_found_and_its_interval_covers_it():
    held = []
    for rng_seed in range(40):
        logs, tables = optima(rng_seed=rng_seed)
        posterior = fit_hierarchy(tables, logs, ("tokens",), LawPriors()).posterior
        low, high = _scatter_interval(posterior.weight, posterior.tau, (0.025, 0.975))
        assert 0 <= low < high
        held.append(low <= 0.1 <= high)
    assert np.mean(held) >= 0.85  # three standard errors below 95%


def test_the_interval_of_the_scatter_is_that_of_cells():
    weight, tau = np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(_scatter_interval(weight, tau, (0.25, 0.875)), [0.1, 0.3], rtol=1e-9, atol=0)
    assert _scatter_interval(np.ones(1), np.array([0.2]), (0.025, 0.975)) == (0.2, 0.2)


def test_a_large_scatter_is_improbable_but_not_impossible():
    """A half-normal prior of the same scale would hold five times its scale to be out of the question."""
    logs, tables = optima(slices=7, scatter=0.6, rng_seed=3)
    tau = fit_hierarchy(tables, logs, ("tokens",), LawPriors()).posterior
    assert 0.3 < tau.weight @ tau.tau < 0.9


def test_units_of_the_sizes_change_nothing():
    logs, tables = optima()
    found = fit_hierarchy(tables, logs, ("tokens",), LawPriors())
    moved = fit_hierarchy(tables, logs + 30.0, ("tokens",), LawPriors())
    at = np.array([[np.log(64) + 2.0]])
    for a, b in ((found, moved),):
        own = a.posterior.quantiles(a.terms.rows(at[0]), (0.025, 0.5, 0.975))
        other = b.posterior.quantiles(b.terms.rows(at[0] + 30.0), (0.025, 0.5, 0.975))
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5)


def test_a_known_part_of_the_optima_is_taken_out():
    logs, tables = optima()
    known = 0.7 * np.sin(np.arange(len(logs)))
    moved = tables_of_optima(tables.grid.mean(axis=1) + known, np.full(len(logs), 0.02), np.zeros(len(logs)))
    found = fit_hierarchy(tables, logs, ("tokens",), LawPriors())
    same = fit_hierarchy(moved, logs, ("tokens",), LawPriors(), known)
    np.testing.assert_allclose(same.posterior.moments[0], found.posterior.moments[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("angle", [0.3, 1.0])
def test_the_prior_of_the_bends_is_the_same_in_every_direction(angle):
    """Turned covariates give the same prediction, because a product has sqrt(2) times the SD of a square."""
    rng = np.random.default_rng(1)
    logs = rng.normal(size=(9, 2))
    m = logs @ [-0.3, 0.2] + 0.05 * rng.normal(size=9)
    tables = tables_of_optima(m, np.full(9, 0.05), np.zeros(9))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = [fit_hierarchy(tables, z, ("a", "b"), LawPriors(bend_sd=0.05)) for z in (logs, logs @ turn)]
    at = np.array([4.0, 3.0])
    ends = [
        f.posterior.quantiles(f.terms.rows(z), (0.025, 0.975))
        for f, z in zip(found, (at, at @ turn), strict=True)
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=2e-3)
