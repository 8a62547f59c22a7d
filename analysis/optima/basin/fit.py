"""Fit one basin to all slices: every slice helps to estimate the shape of the loss about the best rate.

The model, relative to the floor L of a slice, is loss / L - 1 = a S(u - X theta) + noise. Here u holds the
natural logs of what is tuned (rate, or rate and batch), X theta is a law in the covariates, S is a quadratic
form plus all cubic terms, and a is one unless the curvature depends on the covariates (see `curvature`). Loss
rises faster above the best rate than below it, so a parabola over a wide window is biased. One slice cannot
identify the cubic terms, but all slices together can. Then each slice gets its own optimum, with S held.

Runs far from the optimum tell little about where it is. A run at excess r over the floor has the weight
1 / (1 + (r/scale)^2) on its residual, and so the square of that on its squared residual. A cubic misses a far
run by a fixed fraction of r; with the plain weight on the square, every far run would pull alike, however far
out it lies.

The scale is a bandwidth that depends on how densely the sweep covers the bottoms: at the chosen scale, the
weights of the median slice sum to three times the number of the slice's own parameters, floor and optimum. It
is 0.003 for dense 12 x 10 grids over rate and batch, and 0.02 to 0.03 for a dozen rates at half octaves. In
simulations of the latter, 0.005 doubles the error of an optimum; of the former, 0.002 to 0.004 cannot be told
apart, and wider scales are biased.

The floor is fitted too, because the lowest loss of a slice lies below its floor by the luck of the draw. On
dense grids with noise of 0.1% of the loss this changes no prediction that matters.
"""

import contextlib
import dataclasses
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.basin.curvature import (
    LEAST_NOISE_FALL,
    ROUNDS,
    CurvatureLaw,
    curvature_amplitudes,
    fit_curvature_law,
    slice_amplitudes,
)
from hyperp.analysis.optima.basin.joint import ITERATIONS, TOLERANCE, BasinParameters, fit_shape
from hyperp.analysis.optima.basin.locate import (
    SliceFits,
    few_values_reason,
    fit_slices,
    second_valley_reasons,
    slice_state,
)
from hyperp.analysis.optima.basin.shape import (
    BasinShape,
    LossCurves,
    law_design,
    monomial_powers,
    pack_curves,
)
from hyperp.analysis.vocabulary import State

# K: slices   m: runs in the longest slice   p: what is tuned   P: coefficients of the law for one of these

BLIND = ("too_few_rates", "not_convex")  # slices in these states inform neither the shape nor an optimum


@dataclass(frozen=True)
class BasinFit:
    """The fit of one basin to all slices; arrays are over the slices in the order of `curves.labels`.

    Attributes:
        curves: the runs.
        shape: S.
        scale: relative excess loss at which the residual of a run counts half.
        noise: residual standard deviation of one run, relative to its loss.
        df: degrees of freedom of `noise`.
        curvature: the tested exponents of the curvature and which of them are used; None where the slices
            identify none. The amplitude of each slice's basin is `curves.amplitude` (K,).
        states, reasons: of each slice; the reason is None where the slice is bracketed.
        optimum: (K, p) natural logs; NaN for too_few_rates and not_convex, outside the rates for an edge.
        cov: (K, p, p) covariance of each optimum with the shape held.
        floor: (K,) loss at the optimum.
        converged: whether the last Gauss-Newton step moved every location by less than 1e-6.
        residual, weight: (K, m) of each run in its slice's own fit.
        shaped: mask (K,) of the slices that the shape was fitted to.
        X: their design, with a row for each.
        parameters: what was fitted to them.
    """

    curves: LossCurves
    shape: BasinShape
    scale: float
    noise: float
    df: float
    curvature: CurvatureLaw | None
    states: tuple[State, ...]
    reasons: tuple[str | None, ...]
    optimum: np.ndarray
    cov: np.ndarray
    floor: np.ndarray
    converged: bool
    residual: np.ndarray
    weight: np.ndarray
    shaped: np.ndarray
    X: np.ndarray
    parameters: BasinParameters

    @property
    def bracketed(self) -> np.ndarray:
        """Mask (K,) of the slices that bracket their optimum."""
        return np.array([state == "bracketed" for state in self.states])

    @property
    def se(self) -> np.ndarray:
        """Standard errors of the optima in natural logs, (K, p)."""
        return np.sqrt(np.diagonal(self.cov, axis1=-2, axis2=-1))

    def penalty(self, du: np.ndarray, k: int | None = None) -> np.ndarray:
        """Relative excess loss at a displacement `du` (..., p) natural logs from the optimum of slice `k`.

        Without `k`, it is that at the geometric mean of the covariates.
        """
        return self.shape.penalty(du) * (1.0 if k is None else self.curves.amplitude[k])


def fit_basin(
    U: np.ndarray,
    loss: np.ndarray,
    slices: np.ndarray,
    weights: np.ndarray | None = None,
    covariates: np.ndarray | None = None,
    scale: float | None = None,
) -> BasinFit:
    """Fit one shape to all slices, then each slice's own optimum.

    Args:
        U: (n,), (n, 1) or (n, 2) natural logs of rate, or of rate and batch.
        loss: (n,) positive losses; multiplying those of a slice by a constant does not change the optima.
        slices: (n,) integers, the slice of each run.
        weights: (n,) numbers of seeds that each loss averages; one each by default.
        covariates: (K, q) natural logs, in the order of the sorted labels. With them, the optima follow a law
            while the shape is estimated; without, they are free. Each slice's own optimum is free either way.
        scale: relative excess loss at which a residual counts half; chosen from the data by default.

    Raises:
        ValueError: the input is bad, covariates are collinear, or there are fewer slices than coefficients
            plus one.
        Refusal: the curves have no bottom.
    """
    curves = pack_curves(U, loss, slices, weights)
    if scale is not None and not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if covariates is not None:
        law_design(covariates, len(curves.labels))  # a fault of the whole design is bad input, no refusal
        covariates = np.asarray(covariates, dtype=float).reshape(len(curves.labels), -1)
    settled, curvature = _fit_until_states_hold(curves, covariates, scale), None
    if covariates is not None:
        settled, curvature = _with_curvature_law(settled, covariates, scale)
    fit, noise, found = settled.fit, settled.noise, settled.found
    located = fit.located
    blind = np.array([state in BLIND for state, _ in found])
    cov = noise**2 * located.cov
    cov[blind] = np.nan
    return BasinFit(
        curves=settled.curves,
        shape=BasinShape(fit.powers, fit.parameters.coef),
        scale=fit.scale,
        noise=noise,
        df=located.df(~blind, len(fit.parameters.coef)),
        curvature=curvature,
        states=tuple(state for state, _ in found),
        reasons=tuple(reason for _, reason in found),
        optimum=np.where(blind[:, None], np.nan, located.optimum),
        cov=cov,
        floor=located.floor,
        converged=fit.moved < 1e-6,
        residual=located.residual,
        weight=located.weight,
        shaped=fit.shaped,
        X=fit.X,
        parameters=fit.parameters,
    )


@dataclass(frozen=True)
class _ShapeFit:
    """The shape fitted to the slices `shaped` (K,) with design X, and all slices located with it."""

    parameters: BasinParameters
    powers: np.ndarray
    scale: float
    moved: float
    located: SliceFits
    shaped: np.ndarray
    X: np.ndarray


@dataclass(frozen=True)
class _StateFit:
    """A fit whose shape leaves out slices that are no bowl, the noise of one run and the states."""

    curves: LossCurves
    fit: _ShapeFit
    noise: float
    found: list[tuple[State, str | None]]

    def curvature(self, Z: np.ndarray, among: np.ndarray) -> CurvatureLaw | None:
        """Test how the curvature of the bracketed slices depends on the covariates Z (K, q) in `among`."""
        keep = np.array([state == "bracketed" for state, _ in self.found])
        fit = self.fit
        own = slice_amplitudes(self.curves, fit.located, fit.powers, fit.parameters.coef, self.noise, keep)
        return fit_curvature_law(*own, Z, among)


def _with_curvature_law(
    plain: _StateFit, Z: np.ndarray, scale: float | None
) -> tuple[_StateFit, CurvatureLaw | None]:
    """Fit again with the significant exponents of the curvature; keep that if the noise falls by enough."""
    tested = plain.curvature(Z, np.ones(Z.shape[1], dtype=bool))
    if tested is None or not tested.significant.any():
        return plain, tested
    used, bent, law = tested.significant, plain, tested
    for _ in range(ROUNDS):
        law = bent.curvature(Z, used)
        if law is None:
            return plain, tested
        amplitude = curvature_amplitudes(Z, np.nan_to_num(law.exponent))
        try:
            bent = _fit_until_states_hold(dataclasses.replace(plain.curves, amplitude=amplitude), Z, scale)
        except Refusal:
            return plain, tested
    if bent.noise > (1 - LEAST_NOISE_FALL) * plain.noise:
        return plain, tested
    exponent, se = np.where(used, law.exponent, tested.exponent), np.where(used, law.se, tested.se)
    return bent, CurvatureLaw(exponent, se, np.where(used, law.p, tested.p), used)


def _fit_until_states_hold(
    curves: LossCurves, covariates: np.ndarray | None, scale: float | None
) -> _StateFit:
    """Fit, find the slices that are not convex, and fit again without them until all that remain are."""
    found: list[tuple[State, str | None]] = [("bracketed", None)] * len(curves.labels)
    for k, valley in enumerate(second_valley_reasons(curves)):
        if few := few_values_reason(curves, k):
            found[k] = ("too_few_rates", few)
        elif valley:
            found[k] = ("not_convex", valley)
    while True:
        usable = np.array([state not in BLIND for state, _ in found])
        fit = _fit_usable(curves, usable, covariates, scale)
        located = fit.located
        noise = located.noise(usable, len(fit.parameters.coef))
        for k in np.flatnonzero(usable):
            # A slice that is no bowl would raise the noise and so hide that it is none.
            others = usable & (np.arange(len(usable)) != k)
            others_noise = located.noise(others if others.any() else usable, len(fit.parameters.coef))
            found[k] = slice_state(curves, int(k), located, fit.scale, others_noise)
        if all(found[k][0] != "not_convex" for k in np.flatnonzero(usable)):
            break
    return _StateFit(curves, fit, noise, found)


def _fit_usable(
    curves: LossCurves, usable: np.ndarray, covariates: np.ndarray | None, scale: float | None
) -> _ShapeFit:
    """Fit the shape to the slices in the mask `usable`, then locate every slice with it."""
    keep, X = usable, np.eye(int(usable.sum()))
    if covariates is not None:
        # Where too few slices are left for the law, each has its own location.
        with contextlib.suppress(ValueError):
            X = law_design(covariates[usable], len(X))
    if len(X) == X.shape[1]:  # without a law, a curve that ends at its best run determines no location
        inside = ((curves.best > curves.low) & (curves.best < curves.high)).all(axis=1)
        keep = usable & inside if (usable & inside).any() else usable
        X = np.eye(int(keep.sum()))
    if not keep.any():
        raise Refusal("no slice has three rates and a bottom")
    part, powers = curves.select(keep), monomial_powers(curves.u.shape[2])
    parameters, chosen, moved = fit_shape(part, X, powers, scale)
    where, floor = curves.best, curves.loss.min(axis=1)
    where[keep], floor[keep] = np.clip(X @ parameters.theta, part.low, part.high), parameters.floor
    located = fit_slices(curves, powers, parameters.coef, where, floor, ITERATIONS, chosen, TOLERANCE)
    return _ShapeFit(parameters, powers, chosen, moved, located, keep, X)
