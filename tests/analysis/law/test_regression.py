"""The regression of optima on sizes: its weights, its scatter between slices, and published intervals."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from hyperp.analysis.random_effects import meta_regression, paule_mandel, t_quantile
from tests.paths import PUBLIC_SWEEPS


def _line(k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = np.column_stack([np.ones(k), np.arange(k, dtype=float)])
    return x, x @ [1.0, -0.5] + 0.1 * rng.normal(size=k)


def test_without_errors_it_is_ordinary_least_squares():
    X, y = _line(7, np.random.default_rng(0))
    ours, theirs = meta_regression(y, None, X), sm.OLS(y, X).fit()
    np.testing.assert_allclose(ours.beta, theirs.params, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours.se, theirs.bse, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.column_stack(ours.interval()), theirs.conf_int(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.p_value(1), theirs.pvalues[1], rtol=1e-8, atol=1e-12)
    x0 = np.array([1.0, 9.0])
    half = t_quantile(5, 0.95) * math.sqrt(x0 @ ours.cov @ x0 + ours.tau2 + ours.unit_variance)
    theirs_half = np.ptp(theirs.get_prediction(x0[None]).conf_int(obs=True)) / 2
    np.testing.assert_allclose(half, theirs_half, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0])
def test_equal_errors_change_tau_and_not_the_line(scale):
    X, y = _line(6, np.random.default_rng(1))
    ours, theirs = meta_regression(y, np.full(6, scale), X), sm.OLS(y, X).fit()
    np.testing.assert_allclose(ours.beta, theirs.params, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.tau2, max(0.0, theirs.mse_resid - scale**2), rtol=1e-6, atol=1e-12)
    # Never less sure than the errors allow, never surer than the scatter.
    np.testing.assert_allclose(
        ours.se, theirs.bse * max(1, scale / math.sqrt(theirs.mse_resid)), rtol=1e-6, atol=0
    )


def test_paule_mandel_solves_its_equation_and_agrees_with_statsmodels():
    rng = np.random.default_rng(2)
    X, y = _line(9, rng)
    v = rng.uniform(0.001, 0.004, 9)
    tau2 = paule_mandel(y, v, X)
    assert tau2 > 0
    fit = sm.WLS(y, X, weights=1 / (v + tau2)).fit()  # pyright: ignore
    np.testing.assert_allclose(np.sum(fit.resid**2 / (v + tau2)), 7, rtol=1e-8, atol=0)
    ours = meta_regression(y, np.sqrt(v), X)
    np.testing.assert_allclose(ours.se, np.sqrt(np.diag(fit.normalized_cov_params)), rtol=1e-6, atol=0)
    # statsmodels has Paule-Mandel for a mean alone (its "iterated" method).
    from statsmodels.stats.meta_analysis import combine_effects

    flat = y - X @ [1.0, -0.5]
    theirs = combine_effects(flat, v, method_re="iterated", atol=1e-9).tau2  # pyright: ignore
    assert theirs > 0
    np.testing.assert_allclose(paule_mandel(flat, v, X[:, :1]), theirs, rtol=1e-6, atol=1e-10)


def test_points_on_a_line_have_no_error():
    X, _ = _line(4, np.random.default_rng(3))
    fit = meta_regression(X @ [2.0, -0.5], None, X)
    np.testing.assert_allclose(fit.beta, [2, -0.5], rtol=1e-10, atol=0)
    np.testing.assert_allclose(fit.se, 0, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("y", "se", "X", "message"),
    [
        ([1.0, 2.0], None, [[1.0, 0], [1, 1]], "at least 3 units are needed for 2 coefficients, got 2"),
        ([1.0, 2, 3], None, [[1.0, 2], [1, 2], [1, 2]], "must be linearly independent, got rank 1 of 2"),
        ([1.0, np.nan, 3], None, [[1.0, 0], [1, 1], [1, 2]], "must be finite"),
        ([1.0, 2, 3], [1.0], [[1.0, 0], [1, 1], [1, 2]], r"must be \(K,\), \(K,\) and \(K, P\)"),
    ],
)
def test_a_regression_that_cannot_be(y, se, X, message):
    with pytest.raises(ValueError, match=message):
        meta_regression(np.array(y), None if se is None else np.array(se), np.array(X))


def test_marin_optima_give_the_published_interval():
    """Five MuonH optima, constant schedule (marin issue 7856): exponent, SE and 95% interval, log-log."""
    path = PUBLIC_SWEEPS / "marin7856_muonh_constlr_optima.csv"
    if not path.is_file():
        pytest.skip("the folder shared/data does not lie beside the repository")
    data = pd.read_csv(path)
    X = np.column_stack([np.ones(len(data)), np.log(data["tokens"])])
    fit = meta_regression(np.log(data["lr_opt"].to_numpy()), None, X)
    low, high = fit.interval()
    np.testing.assert_allclose([fit.beta[1], fit.se[1]], [-0.5563, 0.0287], rtol=0, atol=5e-5)
    np.testing.assert_allclose([low[1], high[1]], [-0.6477, -0.4649], rtol=0, atol=5e-5)
