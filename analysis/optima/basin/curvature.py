"""Whether basins grow narrower or wider along the covariates: amplitude_k = exp(kappa . (z_k - mean z)).

Rates taken for excess loss at a common curvature misfit where the curvature changes: the misfit reads as
noise, and optima near the ends of their rates lean. But an exponent for every covariate costs more than it
brings where curvature hardly changes, so one is used if it is significant, and if the noise of the fit falls
by a tenth with it. That rule was chosen on two data sets: a ladder of small models (curvature as tokens^0.44,
p = 0.01, noise 1.14% without and 0.63% with it) and StepLaw's 17 cells (tokens^-0.20, p = 8e-5, 0.0940% and
0.0937%, where using it makes held-out predictions worse). Four slices are too few for the test: on a public
width sweep of four it is significant, and moves the exponent of the optimum from -0.07 to -0.05.
"""

from dataclasses import dataclass

import numpy as np

from hyperp.analysis.optima.basin.locate import SliceFits
from hyperp.analysis.optima.basin.shape import LossCurves, identifiable_columns, monomials, shape_gradient
from hyperp.analysis.random_effects import meta_regression

# K: slices   q: covariates   S: terms of the shape

SIGNIFICANCE = 0.05  # an exponent of the curvature with a smaller p is significant
MIN_DF = 3  # the test has been simulated from five slices on; four are too few to bend every basin by
LEAST_NOISE_FALL = 0.1  # relative fall of the noise from which on it is used
ROUNDS = 4  # of amplitudes and shape in turn; the exponent is settled to a hundredth of its error by then
LEAST_AMPLITUDE = 0.05  # own amplitude, relative to the model's, below which a slice does not say one
LARGEST_LOG_AMPLITUDE = 5.0  # natural log of the largest amplitude


@dataclass(frozen=True)
class CurvatureLaw:
    """Exponents of the curvature: `exponent`, `se`, `p` (q,), NaN where not tested; `used` (q,) a mask."""

    exponent: np.ndarray
    se: np.ndarray
    p: np.ndarray
    used: np.ndarray

    @property
    def significant(self) -> np.ndarray:
        """Mask (q,)."""
        return np.nan_to_num(self.p, nan=1.0) < SIGNIFICANCE


def curvature_amplitudes(Z: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Amplitude (K,) of the shape in each slice; one at the geometric mean of the covariates."""
    return np.exp(np.clip((Z - Z.mean(axis=0)) @ exponent, -LARGEST_LOG_AMPLITUDE, LARGEST_LOG_AMPLITUDE))


def slice_amplitudes(
    curves: LossCurves,
    located: SliceFits,
    powers: np.ndarray,
    coef: np.ndarray,
    noise: float,
    keep: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """ln of each slice's own amplitude, and its standard error, (K,); NaN for a slice that does not say.

    Weighted regression of the excess loss on the shape and its gradient: floor and location are free too.
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
    """Random-effects regression of ln amplitude on the covariates in the mask `among` (q,).

    None with fewer degrees of freedom than MIN_DF, or where the slices identify no exponent.
    """
    said = np.isfinite(value) & (se > 0)
    candidates = np.flatnonzero(among)
    columns = candidates[identifiable_columns(Z[said][:, candidates])] if said.any() else []
    if len(columns) == 0 or said.sum() - len(columns) - 1 < MIN_DF:
        return None
    centred = Z[said][:, columns] - Z[:, columns].mean(axis=0)
    fit = meta_regression(value[said], se[said], np.column_stack([np.ones(said.sum()), centred]))
    exponent, error, p = np.full((3, Z.shape[1]), np.nan)
    exponent[columns], error[columns] = fit.beta[1:], fit.se[1:]
    p[columns] = [fit.p_value(1 + j) for j in range(len(columns))]
    return CurvatureLaw(exponent, error, p, np.zeros(Z.shape[1], dtype=bool))
