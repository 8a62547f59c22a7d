"""Random-effects meta-regression: Paule-Mandel between-unit variance, Knapp-Hartung t intervals.

Units (here slices) scatter about the line more than their own standard errors allow, so a weighted fit that
trusts those errors gives intervals that are too narrow. Paule and Mandel (J. Res. NBS 87, 1982) choose the
between-unit variance tau^2 so that the weighted residual sum of squares equals its degrees of freedom. Knapp
and Hartung (Stat. Med. 22, 2003) scale the covariance by the ratio of the two and use Student's t. With the
tau^2 of Paule and Mandel that ratio is one where tau^2 > 0 and at most one where tau^2 = 0. Jackson et al.
(Stat. Med. 36, 2017) let it be no less than one, so it never changes the covariance, and the code below has
no such scale. Only Student's t remains of the method of Knapp and Hartung.

This module does without statsmodels. Its Paule-Mandel estimator (`stats.meta_analysis.combine_effects`) knows
no covariates, only a common mean. Its WLS could do the inner least squares, but the root search for tau^2
calls that some twenty times for each fit, and leave-one-out fits the law again for each slice. The fitted law
goes to statsmodels for further tests by `Law.to_statsmodels` in results.py; tests compare the two.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

# K: units   P: coefficients


@dataclass(frozen=True)
class MetaRegression:
    """A fitted linear model of K units with P coefficients.

    Attributes:
        beta: (P,) coefficients.
        cov: (P, P) their covariance.
        tau2: between-unit variance.
        df: degrees of freedom, K - P.
        unit_variance: mean of the units' own variances.
        residual_sd: square root of the residual sum of squares over `df`.
        residuals: (K,) y less the fitted line.
    """

    beta: np.ndarray
    cov: np.ndarray
    tau2: float
    df: int
    unit_variance: float
    residual_sd: float
    residuals: np.ndarray

    @property
    def se(self) -> np.ndarray:
        """Standard errors of the coefficients, (P,)."""
        return np.sqrt(np.diag(self.cov))

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper confidence limits of the coefficients, each (P,), from Student's t."""
        half = t_quantile(self.df, level) * self.se
        return self.beta - half, self.beta + half

    def p_value(self, index: int, value: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that coefficient `index` equals `value`."""
        return p_value(float(self.beta[index]), float(self.se[index]), self.df, value)


def t_quantile(df: float, level: float) -> float:
    """Half width, in standard errors, of a two-sided Student's t interval that covers `level`."""
    return float(stdtrit(df, 0.5 + level / 2))


def p_value(estimate: float, se: float, df: int, value: float) -> float:
    """Two-sided p-value of the hypothesis that the true value is `value`, by Student's t."""
    if se == 0:
        return float(estimate == value)
    return float(2 * stdtr(df, -abs(estimate - value) / se))


def meta_regression(y: np.ndarray, se: np.ndarray | None, X: np.ndarray) -> MetaRegression:
    """Regress y on X by weighted least squares with weights 1 / (se^2 + tau^2).

    Args:
        y: (K,) one value for each unit.
        se: (K,) standard errors of `y`; None or zeros give ordinary least squares.
        X: (K, P) design.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, a rank of X below P, or fewer
            than P + 1 units.
    """
    y, X = np.asarray(y, dtype=float), np.asarray(X, dtype=float)
    v = np.zeros(len(y)) if se is None else np.asarray(se, dtype=float) ** 2
    if X.ndim != 2 or y.shape != (len(X),) or v.shape != y.shape:
        raise ValueError(f"y, se and X must be (K,), (K,) and (K, P), got {y.shape}, {v.shape} and {X.shape}")
    if not (np.isfinite(y).all() and np.isfinite(v).all() and np.isfinite(X).all()):
        raise ValueError("y, se and X must be finite")
    K, P = X.shape
    if np.linalg.matrix_rank(X) < P:
        raise ValueError(
            f"the columns of X must be linearly independent, got rank {np.linalg.matrix_rank(X)} of {P}"
        )
    if K <= P:
        raise ValueError(f"at least {P + 1} units are needed for {P} coefficients, got {K}")
    tau2 = paule_mandel(y, v, X)
    total = v + tau2
    if not total.any():  # the points lie exactly on a line
        total = np.ones(K)
        beta, residuals, bread = _weighted_least_squares(y, X, total)
        return MetaRegression(beta, 0 * bread, 0.0, K - P, 0.0, 0.0, residuals)
    beta, residuals, bread = _weighted_least_squares(y, X, total)
    residual_sd = math.sqrt(float(residuals @ residuals) / (K - P))
    return MetaRegression(beta, bread, tau2, K - P, float(v.mean()), residual_sd, residuals)


def paule_mandel(y: np.ndarray, v: np.ndarray, X: np.ndarray) -> float:
    """The tau^2 at which sum r^2 / (v + tau^2) equals K - P, or 0 if the sum is smaller than that at 0.

    Args:
        y: (K,) one value for each unit.
        v: (K,) variances of `y`.
        X: (K, P) design.
    """
    df = len(y) - X.shape[1]
    _, ols_residuals, _ = _weighted_least_squares(y, X, np.ones(len(y)))
    # The weighted sum is at most RSS_ols / tau^2, so the root is no larger than this.
    upper = float(ols_residuals @ ols_residuals) / df
    if upper <= 1e-28 * max(1.0, float(y @ y)):
        return 0.0
    if not v.any():
        return upper

    from scipy.optimize import brentq  # takes a quarter second to import, and a prediction needs no fit

    def excess(tau2: float) -> float:
        total = np.maximum(v + tau2, 1e-12 * upper)
        return float(np.sum(_weighted_least_squares(y, X, total)[1] ** 2 / total)) - df

    if excess(0.0) <= 0:
        return 0.0
    if excess(upper) >= 0:
        return upper
    return float(brentq(excess, 0.0, upper, xtol=1e-14 * upper, rtol=1e-12))  # pyright: ignore


def _weighted_least_squares(
    y: np.ndarray, X: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients (P,), residuals (K,) and (X' W X)^-1 (P, P) for W = 1 / variance."""
    root = 1 / np.sqrt(variance)
    scaled = X * root[:, None]
    q, r = np.linalg.qr(scaled)
    inverse = np.linalg.inv(r)
    beta = inverse @ (q.T @ (y * root))
    return beta, y - X @ beta, inverse @ inverse.T
