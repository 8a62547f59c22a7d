"""Fit one basin to all slices: every slice helps to estimate the shape of the loss about the best rate.

The model, relative to the floor L of a slice, is loss / L - 1 = a S(u - optimum) + noise. Here u holds the
natural logs of what is tuned, and S is a quadratic form plus cubic terms, some of them shrunk (see
`descent`). The factor a is one, or a power law of the covariates where these are given, with exponents that
are shrunk too. Loss rises faster above the best rate than below it, so a parabola over a wide window is
biased. One slice cannot identify the cubic terms, but all slices together can.

The shape is fitted to the slices that bracket their optimum, each with an optimum of its own. Then every
slice gets its optimum with the shape held. A law of the optima has no part in it: slices scatter about any
law, and a shape fitted along one leans by what they scatter. In simulations that moved optima by 0.06 octave.

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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.basin.descent import (
    BasinParameters,
    amplitude,
    descend,
    information,
    linearise,
    prior_precision,
)
from hyperp.analysis.optima.basin.shape import (
    BasinShape,
    LossCurves,
    invert,
    pack_curves,
    run_weights,
    shape_powers,
    subtract_weighted_means,
)
from hyperp.analysis.optima.basin.states import few_values_reason, second_valley_reasons, slice_state
from hyperp.analysis.vocabulary import State

# K: slices   m: runs in the longest slice   p: what is tuned   S: terms of the shape

BLIND = ("too_few_rates", "not_convex")  # slices in these states inform neither the shape nor an optimum
SCALE_RANGE = (0.002, 0.03)  # a smaller scale fits noise; beyond a larger one no basin is a cubic
LEAST_START = 0.01  # of the largest curvature, for a curvature from which the fit starts
EFFECTIVE_RUNS = 3.0  # in the median slice, for each of the slice's own parameters: floor and optimum


@dataclass(frozen=True)
class BasinFit:
    """The fit of one basin to all slices; arrays are over the slices in the order of `curves.labels`.

    Attributes:
        curves: the runs.
        shape: S, at the geometric mean of the covariates.
        bend: (q,) exponents of the curvature in the covariates.
        scale: relative excess loss at which the residual of a run counts half.
        noise: residual standard deviation of one run, relative to its loss; None where no degree of freedom
            is left to measure it by.
        df: degrees of freedom of `noise`, at least one where there is any.
        states, reasons: of each slice; the reason is None where the slice is bracketed.
        optimum: (K, p) natural logs; NaN for too_few_rates and not_convex, outside the rates for an edge.
        own, common: (K, p, p) covariance of each optimum for a noise of one: with the shape held, and what
            the error of the shape adds to it. NaN as `optimum`.
        floor: (K,) loss at the optimum.
        converged: whether the last Gauss-Newton step moved every location by less than 1e-6.
        residual, weight: (K, m) of each run in its slice's own fit.
        shaped: mask (K,) of the slices that the shape was fitted to.
    """

    curves: LossCurves
    shape: BasinShape
    bend: np.ndarray
    scale: float
    noise: float | None
    df: int
    states: tuple[State, ...]
    reasons: tuple[str | None, ...]
    optimum: np.ndarray
    own: np.ndarray
    common: np.ndarray
    floor: np.ndarray
    converged: bool
    residual: np.ndarray
    weight: np.ndarray
    shaped: np.ndarray

    @property
    def bracketed(self) -> np.ndarray:
        """Mask (K,) of the slices that bracket their optimum."""
        return np.array([state == "bracketed" for state in self.states])

    @property
    def cov(self) -> np.ndarray:
        """Covariance of each optimum, (K, p, p); NaN where the noise is not known."""
        return (np.nan if self.noise is None else self.noise**2) * (self.own + self.common)

    @property
    def se(self) -> np.ndarray:
        """Standard errors of the optima in natural logs, (K, p); NaN where the noise is not known."""
        return np.sqrt(np.diagonal(self.cov, axis1=-2, axis2=-1))

    @property
    def amplitude(self) -> np.ndarray:
        """Factor (K,) of the shape in each slice."""
        return amplitude(self.curves, self.bend)


def fit_basin(
    U: np.ndarray,
    loss: np.ndarray,
    slices: np.ndarray,
    weights: np.ndarray | None = None,
    covariates: np.ndarray | None = None,
    scale: float | None = None,
    names: Sequence[str] | None = None,
) -> BasinFit:
    """Fit one shape to all slices, then each slice's own optimum.

    Args:
        U: (n,) or (n, p) natural logs of what is tuned.
        loss: (n,) positive losses; multiplying those of a slice by a constant does not change the optima.
        slices: (n,) integers, the slice of each run.
        weights: (n,) numbers of seeds that each loss averages; one each by default.
        covariates: (K, q) natural logs, in the order of the sorted labels, on which the curvature may depend.
        scale: relative excess loss at which a residual counts half; chosen from the data by default.
        names: of what is tuned, for the reasons; rate and batch by default.

    Raises:
        ValueError: the input is bad.
        Refusal: the curves have no bottom.
    """
    curves = pack_curves(U, loss, slices, weights, covariates)
    if scale is not None and not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    fit, found = _fit_until_states_hold(curves, scale, names or ("rate", "batch", "third quantity"))
    blind = np.array([state in BLIND for state, _ in found])
    located, hidden = fit.located, blind[:, None, None]
    return BasinFit(
        curves=curves,
        shape=BasinShape(fit.powers, fit.coef),
        bend=fit.bend,
        scale=fit.scale,
        noise=fit.noise,
        df=fit.df,
        states=tuple(state for state, _ in found),
        reasons=tuple(reason for _, reason in found),
        optimum=np.where(blind[:, None], np.nan, located.optimum),
        own=np.where(hidden, np.nan, fit.own),
        common=np.where(hidden, np.nan, fit.common),
        floor=located.floor,
        converged=fit.moved < 1e-6,
        residual=fit.residual,
        weight=fit.weight,
        shaped=fit.shaped,
    )


@dataclass(frozen=True)
class _ShapeFit:
    """The shape fitted to the slices `shaped` (K,), and all slices located with it; see `BasinFit`."""

    powers: np.ndarray
    coef: np.ndarray
    bend: np.ndarray
    scale: float
    moved: float
    located: BasinParameters
    noise: float | None
    df: int
    own: np.ndarray
    common: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    shaped: np.ndarray


def _fit_until_states_hold(
    curves: LossCurves, scale: float | None, names: Sequence[str]
) -> tuple[_ShapeFit, list[tuple[State, str | None]]]:
    """Fit, find the slices that are not convex, and fit again without them until all that remain are."""
    found: list[tuple[State, str | None]] = [("bracketed", None)] * len(curves.labels)
    for k, valley in enumerate(second_valley_reasons(curves)):
        if few := few_values_reason(curves, k, names):
            found[k] = ("too_few_rates", few)
        elif valley:
            found[k] = ("not_convex", valley)
    while True:
        usable = np.array([state not in BLIND for state, _ in found])
        if not usable.any():
            raise Refusal(f"no slice can show a bottom: {found[0][1]}")
        fit = _fit_usable(curves, usable, scale)
        for k in np.flatnonzero(usable):
            # A slice that is no bowl would raise the noise and so hide that it is none.
            others = fit.shaped & (np.arange(len(usable)) != k)
            noise = _noise_of_runs(curves, fit, others)[0] if others.any() else fit.noise
            found[k] = slice_state(curves, int(k), fit.located, fit.scale, noise, names)
        if all(found[k][0] != "not_convex" for k in np.flatnonzero(usable)):
            return fit, found


def _fit_usable(curves: LossCurves, usable: np.ndarray, scale: float | None) -> _ShapeFit:
    """Fit the shape to those slices in the mask `usable` that have a bottom, then locate every slice with it.

    These are at first the slices whose best run lies inside their runs. With the shape so found, others may
    turn out to have their bottom inside as well; then it is fitted again to all of these.
    """
    powers = shape_powers(curves.u.shape[2])
    inside = usable & ((curves.best > curves.low) & (curves.best < curves.high)).all(axis=1)
    keep = inside if inside.any() else usable
    fit = _fit_shape(curves, powers, keep, scale)
    at = fit.located.optimum
    more = keep | (usable & ((at > curves.low) & (at < curves.high)).all(axis=1))
    return fit if (more == keep).all() else _fit_shape(curves, powers, more, scale)


def _fit_shape(curves: LossCurves, powers: np.ndarray, keep: np.ndarray, scale: float | None) -> _ShapeFit:
    """Fit the shape to the slices in the mask `keep`, then locate every slice with the shape held."""
    part, chosen = curves.select(keep), scale
    chosen = _choose_scale(part, part.loss.min(axis=1)) if scale is None else scale
    at = _start(part, powers, chosen)
    for _ in range(2 if scale is None else 0):
        at, _ = descend(part, powers, at, chosen, iterations=15)
        chosen = _choose_scale(part, at.floor)
    at, moved = descend(part, powers, at, chosen)
    optimum, floor = curves.best, curves.loss.min(axis=1)
    optimum[keep], floor[keep] = np.clip(at.optimum, part.low, part.high), at.floor
    located, _ = descend(curves, powers, BasinParameters(at.coef, at.bend, optimum, floor), chosen, held=True)

    told = information(part, linearise(part, powers, at, chosen))
    prior = prior_precision(powers, at.coef, told)
    bread = np.linalg.inv(told.normal + np.diag(prior))
    e = linearise(curves, powers, located, chosen)
    own = invert(e.normal) @ e.meat @ invert(e.normal)
    common = e.follow @ (bread @ (told.spread + np.diag(prior)) @ bread) @ e.follow.swapaxes(-1, -2)
    noise, df = told.noise
    return _ShapeFit(
        powers, at.coef, at.bend, chosen, moved, located, noise, df, own, common, e.residual, e.weight, keep
    )


def _noise_of_runs(curves: LossCurves, fit: _ShapeFit, keep: np.ndarray) -> tuple[float | None, int]:
    """Noise of one run and its degrees of freedom over the slices in the mask `keep`, with this shape."""
    at = BasinParameters(fit.coef, fit.bend, fit.located.optimum[keep], fit.located.floor[keep])
    part = curves.select(keep)
    return information(part, linearise(part, fit.powers, at, fit.scale)).noise


def _choose_scale(curves: LossCurves, floor: np.ndarray) -> float:
    """The scale within SCALE_RANGE that leaves the median slice its EFFECTIVE_RUNS for each parameter.

    Args:
        curves: the slices.
        floor: (K,) loss at their bottoms.
    """
    wanted = EFFECTIVE_RUNS * (1 + curves.u.shape[2])
    excess, real = curves.loss / floor[:, None] - 1, (curves.count > 0).astype(float)
    low, high = np.log(SCALE_RANGE)
    for _ in range(40):
        middle = (low + high) / 2
        enough = np.median(run_weights(excess, real, np.exp(middle)).sum(axis=1)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return float(np.exp(high))


def _start(curves: LossCurves, powers: np.ndarray, scale: float) -> BasinParameters:
    """The best run of each slice, and the curvatures common to parabolas without mixed terms.

    Raises:
        Refusal: none of the curvatures is positive, so the curves have no common bottom.
    """
    optimum, floor = curves.best, curves.loss.min(axis=1)
    v, excess = curves.u - optimum[:, None, :], curves.loss / floor[:, None] - 1
    w = run_weights(excess, curves.count, scale)
    J, y = subtract_weighted_means(np.concatenate([v**2, v], axis=-1), excess, w)
    p = v.shape[2]
    square, line, root = J[..., :p], J[..., p:], np.sqrt(w)[..., None]
    weighted = (w[..., None] * line).swapaxes(-1, -2)
    free = root * (square - line @ (invert(weighted @ line) @ (weighted @ square)))
    curvature = np.linalg.lstsq(free.reshape(-1, p), (root[..., 0] * y).ravel(), rcond=None)[0]
    if not curvature.max() > 0:
        raise Refusal("the curves together have no bottom: the shared curvature is not positive")
    coef = np.zeros(len(powers))
    for j in range(p):
        pure = (powers.sum(axis=1) == 2) & (powers[:, j] == 2)
        coef[pure] = max(curvature[j], LEAST_START * curvature.max())
    return BasinParameters(coef, np.zeros(curves.sizes.shape[1]), optimum, floor)
