"""Expectation propagation against closed forms and against plain integration."""

import numpy as np
import pytest
from scipy.special import log_ndtr
from scipy.stats import multivariate_normal

from hyperp.analysis.law.hierarchy.propagation import propagate
from tests.oracles.law_integration import integrate_law

Z = np.array([-1.5, -0.5, 0.5, 1.5])
X = np.column_stack([np.ones(4), Z])
PRIOR = np.zeros(2), np.array([3.0, 1.0])
OPTIMA = np.array([0.5, 0.1, -0.05, -0.5])


def tables(likelihoods, low=-6.0, high=6.0, points=241):
    grid = np.linspace(low, high, points)
    loglik = np.array([[own(grid) for own in likelihoods]])
    return loglik, np.full(len(likelihoods), low), np.full(len(likelihoods), grid[1] - grid[0])


def gaussian(centre, sd):
    return lambda m: -0.5 * ((m - centre) / sd) ** 2


def above(edge, soft=0.2):
    """One-sided: the optimum lies above `edge`."""
    return lambda m: log_ndtr((m - edge) / soft)


@pytest.mark.parametrize("tau", [0.05, 0.3])
def test_gaussian_likelihoods_give_the_exact_posterior_and_evidence(tau):
    sd = np.array([0.1, 0.2, 0.15, 0.3])
    likelihoods = [gaussian(m, s) for m, s in zip(OPTIMA, sd, strict=True)]
    found = propagate(*tables(likelihoods), np.zeros(1, dtype=int), np.array([tau]), X, np.zeros(4), *PRIOR)
    variance = sd**2 + tau**2
    cov = np.linalg.inv((X.T / variance) @ X + np.diag(PRIOR[1] ** -2))
    np.testing.assert_allclose(found.cov[0], cov, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.mean[0], cov @ (X.T / variance) @ OPTIMA, rtol=1e-6, atol=1e-9)
    whole = X @ np.diag(PRIOR[1] ** 2) @ X.T + np.diag(variance)
    exact = multivariate_normal.logpdf(OPTIMA, np.zeros(4), whole)  # pyright: ignore
    other = propagate(*tables(likelihoods), np.zeros(1, dtype=int), np.array([1.0]), X, np.zeros(4), *PRIOR)
    wide = X @ np.diag(PRIOR[1] ** 2) @ X.T + np.diag(sd**2 + 1.0)
    exact -= multivariate_normal.logpdf(OPTIMA, np.zeros(4), wide)  # pyright: ignore
    # Evidences are up to a constant that all points of the grid share.
    difference = found.log_evidence[0] - other.log_evidence[0]
    np.testing.assert_allclose(difference, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sided", [(3,), (2, 3), (0, 3)])
def test_one_sided_likelihoods_agree_with_plain_integration(sided):
    likelihoods = [gaussian(m, 0.15) for m in OPTIMA]
    for k in sided:
        likelihoods[k] = above(OPTIMA[k] - 0.1)
    taus = np.array([0.05, 0.2])
    found = propagate(*tables(likelihoods), np.zeros(2, dtype=int), taus, X, np.zeros(4), *PRIOR)
    assert found.converged.all()
    exact = [
        integrate_law(likelihoods, X, tau, *PRIOR, np.array([0.0, -0.2]), np.array([2.0, 2.2]), 121)
        for tau in taus
    ]
    for h, (_, mean, cov) in enumerate(exact):
        sd = np.sqrt(np.diag(cov))
        np.testing.assert_allclose(found.mean[h], mean, rtol=0, atol=0.08 * sd.max())
        np.testing.assert_allclose(np.sqrt(np.diag(found.cov[h])), sd, rtol=0.08, atol=0)
    difference = exact[0][0] - exact[1][0]
    np.testing.assert_allclose(found.log_evidence[0] - found.log_evidence[1], difference, rtol=0, atol=0.05)


def test_what_the_others_say_is_the_law_without_the_slice():
    likelihoods = [gaussian(m, 0.15) for m in OPTIMA]
    tau = np.array([0.1])
    one = np.zeros(1, dtype=int)
    found = propagate(*tables(likelihoods), one, tau, X, np.zeros(4), *PRIOR)
    for k in range(4):
        rest = [i for i in range(4) if i != k]
        own = propagate(*tables([likelihoods[i] for i in rest]), one, tau, X[rest], np.zeros(3), *PRIOR)
        np.testing.assert_allclose(found.others_mean[0, k], X[k] @ own.mean[0], rtol=1e-5, atol=1e-7)
        variance = X[k] @ own.cov[0] @ X[k] + tau[0] ** 2
        np.testing.assert_allclose(found.others_variance[0, k], variance, rtol=1e-5, atol=0)


def test_a_flat_likelihood_says_nothing():
    likelihoods = [gaussian(m, 0.15) for m in OPTIMA]
    one, tau = np.zeros(1, dtype=int), np.array([0.1])
    found = propagate(*tables(likelihoods), one, tau, X, np.zeros(4), *PRIOR)
    more = propagate(
        *tables([*likelihoods, lambda m: 0 * m]), one, tau, np.vstack([X, [1.0, 3.0]]), np.zeros(5), *PRIOR
    )
    np.testing.assert_allclose(more.mean, found.mean, rtol=0, atol=2e-3)
    np.testing.assert_allclose(more.cov, found.cov, rtol=0.02, atol=1e-4)
