"""Test whether basins become narrower or wider along the covariates: amplitude = exp(kappa . (z - mean z)).

Where the curvature changes, a common curvature fits badly: the misfit counts as noise, and optima near the
ends of their rates are biased. But where the curvature hardly changes, an exponent for every covariate costs
more than it gains. So an exponent is used if it is significant and if the noise of the fit falls by a tenth
with it. That rule was chosen on two data sets: a ladder of small models (curvature as tokens^0.44, p = 0.01,
noise 1.14% without the exponent and 0.63% with it) and StepLaw's 17 cells (tokens^-0.20, p = 8e-5, noise
0.0940% and 0.0937%; there the exponent makes held-out predictions worse). Four slices are too few for the
test: on a public width sweep of four, the exponent is significant and changes that of the optimum from -0.07
to -0.05.
"""

from dataclasses import dataclass

import numpy as np

from hyperp.analysis.optima.basin.locate import SliceFits
from hyperp.analysis.optima.basin.shape import LossCurves, identifiable_columns, monomials, shape_gradient
from hyperp.analysis.random_effects import meta_regression

# K: slices   q: covariates   S: terms of the shape

SIGNIFICANCE = 0.05  # an exponent of the curvature with a smaller p-value is significant
MIN_DF = 3  # of the test, which was simulated from five slices on; four are too few to trust it
LEAST_NOISE_FALL = 0.1  # relative fall of the noise for which an exponent is used
ROUNDS = 4  # of fitting amplitudes and shape in turn; the exponent then changes by less than 1% of its error
LEAST_AMPLITUDE = 0.05  # relative to the model's; a slice whose own amplitude is smaller gives none
LARGEST_LOG_AMPLITUDE = 5.0  # bound on |ln amplitude|


@dataclass(frozen=True)
class CurvatureLaw:
    """Exponents of the curvature in the covariates.

    Attributes:
        exponent, se, p: (q,) estimates, standard errors and p-values; NaN where not tested.
        used: mask (q,) of the exponents that the fit uses.
    """

    exponent: np.ndarray
    se: np.ndarray
    p: np.ndarray
    used: np.ndarray

    @property
    def significant(self) -> np.ndarray:
        """Mask (q,) of the exponents that differ significantly from zero."""
        return np.nan_to_num(self.p, nan=1.0) < SIGNIFICANCE


def curvature_amplitudes(Z: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Amplitude (K,) of the shape in each slice; it is one at the geometric mean of the covariates.

    Args:
        Z: (K, q) natural logs of the covariates.
        exponent: (q,) of the curvature.
    """
    return np.exp(np.clip((Z - Z.mean(axis=0)) @ exponent, -LARGEST_LOG_AMPLITUDE, LARGEST_LOG_AMPLITUDE))


def slice_amplitudes(
    curves: LossCurves,
    located: SliceFits,
    powers: np.ndarray,
    coef: np.ndarray,
    noise: float,
    keep: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """ln of each slice's own amplitude and its standard error, (K,); NaN where the slice identifies none.

    A weighted regression of the excess loss on the shape and its gradient, so that floor and location of the
    slice are free too.

    Args:
        curves, located: the slices and their fits.
        powers, coef: the common shape, (S, p) and (S,).
        noise: residual standard deviation of one run.
        keep: mask (K,) of the slices to look at.
    """
    value, se = np.full((2, len(keep)), np.nan)
    for k in np.flatnonzero(keep):
        v = curves.u[k] - located.optimum[k]
        excess, w = curves.loss[k] / located.floor[k] - 1, located.weight[k]
        shape = monomials(v, powers) @ coef * curves.amplitude[k]
        J = np.column_stack([shape, shape_gradient(v, powers, coef), np.ones(len(v))])
        normal = J.T @ (w[:, None] * J)
        if np.linalg.cond(normal) > 1e12:
            continue
        bread = np.linalg.inv(normal)
        beta = bread @ J.T @ (w * excess)
        meat = J.T @ ((w**2 / np.maximum(curves.count[k], 1e-300))[:, None] * J)
        if beta[0] > LEAST_AMPLITUDE:
            value[k] = np.log(beta[0] * curves.amplitude[k])
            se[k] = noise * np.sqrt((bread @ meat @ bread)[0, 0]) / beta[0]
    return value, se


def fit_curvature_law(
    value: np.ndarray, se: np.ndarray, Z: np.ndarray, among: np.ndarray
) -> CurvatureLaw | None:
    """Regress ln amplitude on the covariates in the mask `among` (q,), with random effects.

    Args:
        value, se: (K,) of each slice, from `slice_amplitudes`.
        Z: (K, q) natural logs of the covariates.
        among: mask (q,) of the covariates to test.

    Returns:
        None with fewer than MIN_DF degrees of freedom, or where the slices identify no exponent.
    """
    known = np.isfinite(value) & (se > 0)
    candidates = np.flatnonzero(among)
    columns = candidates[identifiable_columns(Z[known][:, candidates])] if known.any() else []
    if len(columns) == 0 or known.sum() - len(columns) - 1 < MIN_DF:
        return None
    centred = Z[known][:, columns] - Z[:, columns].mean(axis=0)
    fit = meta_regression(value[known], se[known], np.column_stack([np.ones(known.sum()), centred]))
    exponent, error, p = np.full((3, Z.shape[1]), np.nan)
    exponent[columns], error[columns] = fit.beta[1:], fit.se[1:]
    p[columns] = [fit.p_value(1 + j) for j in range(len(columns))]
    return CurvatureLaw(exponent, error, p, np.zeros(Z.shape[1], dtype=bool))
