"""One basin for all slices: the shape of loss about the best rate is estimated from every slice together.

Model, relative to the floor L of a slice:  loss / L - 1 = a S(u - X theta) + noise,  u the natural logs of
what is tuned (rate, or rate and batch), X theta a law, S a quadratic form and all cubic terms, a one unless
the curvature follows a law of its own (see `curvature`). Loss rises faster above the best rate than below it,
and a parabola over a wide window leans by that; the cubic terms are more than one slice can tell, but all
slices together can. Each slice's optimum then follows with S held.

Runs far from the optimum say little about where it is. A run at excess r over the floor has the weight
1 / (1 + (r/scale)^2) ON ITS RESIDUAL, so the square of that on its square: a cubic misses a far run by a
fixed part of r, and with the plain weight on the square every far run pulls alike, however far out.

The scale is a bandwidth, and follows how densely the sweep covers its bottoms: it is the one at which the
weights of the median slice sum to three times the number of its own parameters, floor and optimum. Dense
12 x 10 grids over rate and batch get 0.003 so, a dozen rates at half octaves 0.02 to 0.03. In simulations of
the latter 0.005 doubles the error of an optimum; in the former 0.002 to 0.004 cannot be told apart, and wider
ones lean.

The floor is fitted: the lowest loss of a slice lies below its floor by the luck of the draw. On dense grids
with a noise of 0.1% of the loss this has moved no prediction that matters.
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
from hyperp.analysis.optima.basin.locate import (
    SliceFits,
    fit_slices,
    second_valley_reasons,
    slice_state,
    too_few_values_reasons,
)
from hyperp.analysis.optima.basin.shape import (
    BasinShape,
    LossCurves,
    law_design,
    monomial_powers,
    monomials,
    pack_curves,
    quadratic_form,
    run_weights,
    shape_gradient,
    subtract_weighted_means,
)
from hyperp.analysis.vocabulary import State

# K: slices   m: runs in the longest slice   p: what is tuned   S: terms of the shape
# P: coefficients of the law for one tuned quantity

SCALE_START = 0.01  # the scale of the fit from which the scale is chosen
SCALE_RANGE = (0.002, 0.03)  # below it is noise, above it a cubic is no longer a basin
KEEP = 3.0  # effective runs in the median slice, for each of its own parameters: floor and optimum
LARGEST_STEP = 0.7  # largest move of a location in one Gauss-Newton step, natural log
ITERATIONS = 60
TOLERANCE = 1e-9
BLIND = ("too_few_rates", "not_convex")  # these say nothing about an optimum, nor about the shape


@dataclass(frozen=True)
class BasinParameters:
    """Where a fit stands: `theta` (..., P, p), `coef` (..., S) of the shape, `floor` (..., K)."""

    theta: np.ndarray
    coef: np.ndarray
    floor: np.ndarray


@dataclass(frozen=True)
class BasinFit:
    """The shared fit; arrays are over all slices, in the order of `curves.labels`.

    Attributes:
        curves: the runs.
        shape: S, with `scale` of the weights that it was fitted at.
        noise: residual standard deviation of one run, relative to its loss.
        df: degrees of freedom of the noise that the weights leave.
        curvature: exponents of the curvature in the covariates as tested, and which are used; None without
            covariates that identify one. The amplitude of each slice's basin is `curves.amplitude` (K,).
        states, reasons: of each slice; `reasons` is None where bracketed.
        optimum: (K, p) natural logs; NaN for too_few_rates and not_convex, outside the rates for an edge.
        cov: (K, p, p) covariance of each with the shape held.
        floor: (K,) loss at the optimum.
        converged: whether the last Gauss-Newton step moved every location by less than 1e-6.
        residual, weight: (K, m) of the slice fits, for the bootstrap and the pictures.
        shaped, X, parameters: the slices (K,) that the shape was fitted to, their design, and that fit.
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
        """Mask (K,) of the slices that say where their optimum is."""
        return np.array([state == "bracketed" for state in self.states])

    @property
    def se(self) -> np.ndarray:
        """Standard errors of the optima in e-folds, (K, p)."""
        return np.sqrt(np.diagonal(self.cov, axis1=-2, axis2=-1))

    def penalty(self, du: np.ndarray, k: int | None = None) -> np.ndarray:
        """Relative excess loss at `du` (..., p) natural logs from the optimum of slice `k`.

        Without `k`, that of the common shape, which is the one at the geometric mean of the covariates.
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
    """Fit one shape to all slices, then every slice's own optimum.

    Args:
        U: (n,), (n, 1) or (n, 2) natural logs of rate, or of rate and batch.
        loss: (n,) positive; multiplying the losses of a slice by a constant changes nothing.
        slices: (n,) integers.
        weights: (n,) numbers of seeds that a loss averages.
        covariates: (K, q) logs for the sorted slice labels: optima on a law while the shape is estimated,
            free without. The slice optima are free either way; their regression says what they identify.
        scale: relative excess loss at which a residual counts half; chosen from the data by default.

    Raises:
        ValueError: bad input; collinear covariates; fewer slices than coefficients plus one.
        Refusal: no bottom.
    """
    curves = pack_curves(U, loss, slices, weights)
    if scale is not None and not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if covariates is not None:
        law_design(covariates, len(curves.labels))  # a fault of the whole design is bad input, not a refusal
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
    parameters: BasinParameters
    powers: np.ndarray
    scale: float
    moved: float
    located: SliceFits
    shaped: np.ndarray
    X: np.ndarray


@dataclass(frozen=True)
class _StateFit:
    curves: LossCurves
    fit: _ShapeFit
    noise: float
    found: list[tuple[State, str | None]]

    def curvature(self, Z: np.ndarray, among: np.ndarray) -> CurvatureLaw | None:
        keep = np.array([state == "bracketed" for state, _ in self.found])
        fit = self.fit
        own = slice_amplitudes(self.curves, fit.located, fit.powers, fit.parameters.coef, self.noise, keep)
        return fit_curvature_law(*own, Z, among)


def _with_curvature_law(
    plain: _StateFit, Z: np.ndarray, scale: float | None
) -> tuple[_StateFit, CurvatureLaw | None]:
    """The fit with significant exponents of the curvature, if the noise falls by as much as it has to."""
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
    """Fit, name the slices that are no bowl, and fit again without them until all that are left are."""
    found: list[tuple[State, str | None]] = [("bracketed", None)] * len(curves.labels)
    for k, (valley, few) in enumerate(
        zip(second_valley_reasons(curves), too_few_values_reasons(curves), strict=True)
    ):
        if few or valley:
            found[k] = ("too_few_rates", few) if few else ("not_convex", valley)
    while True:
        usable = np.array([state not in BLIND for state, _ in found])
        fit = _fit_usable(curves, usable, covariates, scale)
        located = fit.located
        noise = located.noise(usable, len(fit.parameters.coef))
        for k in np.flatnonzero(usable):
            others = usable & (np.arange(len(usable)) != k)  # a slice that is no bowl must not excuse itself
            yardstick = located.noise(others if others.any() else usable, len(fit.parameters.coef))
            found[k] = slice_state(curves, int(k), located, fit.scale, yardstick)
        if all(found[k][0] != "not_convex" for k in np.flatnonzero(usable)):
            break
    return _StateFit(curves, fit, noise, found)


def _fit_usable(
    curves: LossCurves, usable: np.ndarray, covariates: np.ndarray | None, scale: float | None
) -> _ShapeFit:
    """Shape from the usable slices, then every slice located with it."""
    keep, X = usable, np.eye(int(usable.sum()))
    if covariates is not None:
        # Too few slices left for the law: then each has a location of its own, and the states say the rest.
        with contextlib.suppress(ValueError):
            X = law_design(covariates[usable], len(X))
    if len(X) == X.shape[1]:  # nothing but a law holds the location of a curve that ends at its best run
        inside = ((curves.best > curves.low) & (curves.best < curves.high)).all(axis=1)
        keep = usable & inside if (usable & inside).any() else usable
        X = np.eye(int(keep.sum()))
    if not keep.any():
        raise Refusal("no slice has three rates and a bottom")
    part, powers = curves.select(keep), monomial_powers(curves.u.shape[2])
    parameters, chosen, moved = fit_shape(part, X, powers, scale)
    where, floor = curves.best, curves.loss.min(axis=1)
    where[keep], floor[keep] = np.clip(X @ parameters.theta, part.low, part.high), parameters.floor
    arrays = (curves.u, curves.loss, curves.count)
    coef = parameters.coef * curves.amplitude[:, None]
    located = fit_slices(*arrays, powers, coef, where, floor, ITERATIONS, chosen, TOLERANCE)
    return _ShapeFit(parameters, powers, chosen, moved, located, keep, X)


def fit_shape(
    curves: LossCurves, X: np.ndarray, powers: np.ndarray, scale: float | None
) -> tuple[BasinParameters, float, float]:
    """Shape and law from the linear solution on; also the scale, and how far the last step moved.

    Raises:
        Refusal: the curves together have no bottom.
    """
    arrays = (curves.u, curves.loss, curves.count, curves.amplitude)
    chosen = SCALE_START if scale is None else scale
    parameters, moved = linear_start(curves, X, powers, chosen), np.inf
    if scale is None:
        for _ in range(2):
            parameters, _ = gauss_newton(*arrays, X, powers, parameters, 15, chosen)
            chosen = choose_scale(curves, parameters.floor)
    parameters, moved = gauss_newton(*arrays, X, powers, parameters, ITERATIONS, chosen, TOLERANCE)
    if not np.isfinite(parameters.coef).all() or not _is_bowl(powers, parameters.coef):
        raise Refusal("the curves together have no bottom: the shared curvature is not positive")
    return parameters, chosen, moved


def choose_scale(curves: LossCurves, floor: np.ndarray) -> float:
    """The scale at which the runs of the median slice count as many as KEEP says, within SCALE_RANGE."""
    p = curves.u.shape[2]
    wanted = KEEP * (1 + p)
    excess, real = curves.loss / floor[:, None] - 1, (curves.count > 0).astype(float)
    low, high = np.log(SCALE_RANGE)
    for _ in range(40):
        middle = (low + high) / 2
        enough = np.median(run_weights(excess, real, np.exp(middle)).sum(axis=1)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return float(np.exp(high))


def _is_bowl(powers: np.ndarray, coef: np.ndarray) -> bool:
    return bool((np.linalg.eigvalsh(quadratic_form(powers, coef)) > 0).all())


def linear_start(curves: LossCurves, X: np.ndarray, powers: np.ndarray, scale: float) -> BasinParameters:
    """The quadratic model multiplied out is linear: u'Au - 2 u'A X theta + a floor for each slice.

    Raises:
        Refusal: A is not positive definite, so the curves have no common bottom.
    """
    p, P = curves.u.shape[2], X.shape[1]
    square = powers[powers.sum(axis=1) == 2]
    origin = np.average(curves.u, axis=(0, 1), weights=np.repeat(curves.count[..., None], p, axis=2))
    v = curves.u - origin
    lowest = curves.loss.min(axis=1)
    excess = curves.loss / lowest[:, None] - 1
    linear = (v[..., :, None] * X[:, None, None, :]).reshape(*v.shape[:2], p * P)
    J = np.concatenate([monomials(v, square), linear], axis=-1) * curves.amplitude[:, None, None]
    root = np.sqrt(run_weights(excess, curves.count, scale))
    J, y = subtract_weighted_means(J, excess, root**2)
    beta = np.linalg.lstsq((J * root[..., None]).reshape(-1, J.shape[-1]), (y * root).ravel(), rcond=None)[0]
    coef = np.concatenate([beta[: len(square)], np.zeros(len(powers) - len(square))])
    A = quadratic_form(powers, coef)
    if not _is_bowl(powers, coef):
        raise Refusal("the curves together have no bottom: the shared curvature is not positive")
    slopes = beta[len(square) :].reshape(p, P)
    theta = (-np.linalg.solve(A, slopes) / 2).T
    theta = theta + np.linalg.lstsq(X, np.tile(origin, (len(X), 1)), rcond=None)[0]
    return BasinParameters(theta, coef, lowest)


def gauss_newton(
    u: np.ndarray,
    loss: np.ndarray,
    count: np.ndarray,
    amplitude: np.ndarray,
    X: np.ndarray,
    powers: np.ndarray,
    start: BasinParameters,
    iterations: int,
    scale: float,
    tolerance: float = 0.0,
    damping: float = 1e-3,
) -> tuple[BasinParameters, float]:
    """Shape and law together, weights renewed at each step; `loss` (..., K, m) may hold many resamples.

    Returns:
        The parameters, and the last move of a location in e-folds.
    """
    S, (P, p) = len(powers), start.theta.shape[-2:]
    theta, coef, floor = start.theta, start.coef, start.floor
    moved = np.inf
    for step in range(iterations):
        v = u - (X @ theta)[..., None, :]
        F = monomials(v, powers) * amplitude[:, None, None]
        excess = loss / floor[..., None] - 1
        w = run_weights(excess, count, scale)
        residual = excess - (F @ coef[..., None, :, None])[..., 0]
        G = -shape_gradient(v, powers, coef[..., None, None, :] * amplitude[:, None, None])
        J = np.concatenate([F, (G[..., None] * X[:, None, None, :]).reshape(*G.shape[:-1], p * P)], axis=-1)
        J_c, r_c = subtract_weighted_means(J, residual, w)
        flat = J_c.reshape(*J_c.shape[:-3], -1, J_c.shape[-1])
        weighted = (flat * w.reshape(*w.shape[:-2], -1, 1)).swapaxes(-1, -2)
        normal = weighted @ flat
        gradient = weighted @ r_c.reshape(*r_c.shape[:-2], -1, 1)
        ridge = np.diagonal(normal, axis1=-2, axis2=-1)[..., None] * np.eye(S + p * P)
        delta = np.linalg.solve(normal + ridge * (damping * 0.3**step + 1e-12), gradient)[..., 0]
        move = delta[..., S:].reshape(*delta.shape[:-1], p, P).swapaxes(-1, -2)
        largest = np.abs(X @ move).max(axis=(-2, -1))
        move = move * np.minimum(1.0, LARGEST_STEP / np.maximum(largest, 1e-300))[..., None, None]
        mean = ((residual - (J @ delta[..., None, :, None])[..., 0]) * w).sum(axis=-1) / w.sum(axis=-1)
        theta, coef, floor = theta + move, coef + delta[..., :S], floor * (1 + mean)
        moved = float(largest.max())
        if moved < tolerance and step >= 5:
            break
    return BasinParameters(theta, coef, floor), moved
