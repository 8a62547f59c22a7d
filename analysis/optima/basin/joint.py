"""Fit the shape of the basin and the law of the optima together, by Gauss-Newton from a linear start."""

from dataclasses import dataclass

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.basin.locate import LARGEST_STEP
from hyperp.analysis.optima.basin.shape import (
    LossCurves,
    monomials,
    quadratic_form,
    run_weights,
    shape_gradient,
    subtract_weighted_means,
)

# K: slices   m: runs in the longest slice   p: what is tuned   S: terms of the shape
# P: coefficients of the law for one tuned quantity   ...: resamples

SCALE_START = 0.01  # scale of the fit from which the scale is chosen
SCALE_RANGE = (0.002, 0.03)  # a smaller scale fits noise; beyond a larger one no basin is a cubic
EFFECTIVE_RUNS = 3.0  # in the median slice, for each of the slice's own parameters: floor and optimum
ITERATIONS = 60
TOLERANCE = 1e-9


@dataclass(frozen=True)
class BasinParameters:
    """What is fitted to all slices together.

    Attributes:
        theta: (..., P, p) coefficients of the law of the optima, in natural logs.
        coef: (..., S) coefficients of the shape.
        floor: (..., K) loss at the bottom of each slice.
    """

    theta: np.ndarray
    coef: np.ndarray
    floor: np.ndarray


def fit_shape(
    curves: LossCurves, X: np.ndarray, powers: np.ndarray, scale: float | None
) -> tuple[BasinParameters, float, float]:
    """Fit the shape and the law of the optima.

    Args:
        curves: the slices.
        X: (K, P) design of the law.
        powers: (S, p) of the terms of the shape.
        scale: of the weights; None chooses it from the data.

    Returns:
        The parameters, the scale, and how far the last step moved a location, in natural logs.

    Raises:
        Refusal: the curves together have no bottom.
    """
    chosen = SCALE_START if scale is None else scale
    parameters = linear_start(curves, X, powers, chosen)
    if scale is None:
        for _ in range(2):
            parameters, _ = gauss_newton(curves, X, powers, parameters, 15, chosen)
            chosen = choose_scale(curves, parameters.floor)
    parameters, moved = gauss_newton(curves, X, powers, parameters, ITERATIONS, chosen, TOLERANCE)
    _refuse_unless_bowl(powers, parameters.coef)
    return parameters, chosen, moved


def choose_scale(curves: LossCurves, floor: np.ndarray) -> float:
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


def _refuse_unless_bowl(powers: np.ndarray, coef: np.ndarray) -> None:
    if not np.isfinite(coef).all() or np.linalg.eigvalsh(quadratic_form(powers, coef)).min() <= 0:
        raise Refusal("the curves together have no bottom: the shared curvature is not positive")


def linear_start(curves: LossCurves, X: np.ndarray, powers: np.ndarray, scale: float) -> BasinParameters:
    """Fit the quadratic model alone; multiplied out as u'Au - 2 u'A X theta + floor(slice), it is linear.

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
    _refuse_unless_bowl(powers, coef)
    slopes = beta[len(square) :].reshape(p, P)
    theta = (-np.linalg.solve(quadratic_form(powers, coef), slopes) / 2).T
    theta = theta + np.linalg.lstsq(X, np.tile(origin, (len(X), 1)), rcond=None)[0]
    return BasinParameters(theta, coef, lowest)


def gauss_newton(
    curves: LossCurves,
    X: np.ndarray,
    powers: np.ndarray,
    start: BasinParameters,
    iterations: int,
    scale: float,
    tolerance: float = 0.0,
    damping: float = 1e-3,
) -> tuple[BasinParameters, float]:
    """Refine shape, law and floors together; the weights are renewed at each step.

    Args:
        curves: the slices; `loss` (..., K, m) may hold many resamples.
        X: (K, P) design of the law.
        powers: (S, p) of the terms of the shape.
        start: where to start.
        iterations: at most so many steps.
        scale: of the weights.
        tolerance: stop once a step moves no location by more, in natural logs.
        damping: of the first step, relative to the diagonal; 0 for a warm start.

    Returns:
        The parameters, and how far the last step moved a location, in natural logs.
    """
    u, amplitude = curves.u, curves.amplitude[:, None, None]
    S, (P, p) = len(powers), start.theta.shape[-2:]
    theta, coef, floor = start.theta, start.coef, start.floor
    moved = np.inf
    for step in range(iterations):
        v = u - (X @ theta)[..., None, :]
        F = monomials(v, powers) * amplitude
        excess = curves.loss / floor[..., None] - 1
        w = run_weights(excess, curves.count, scale)
        residual = excess - (F @ coef[..., None, :, None])[..., 0]
        G = -shape_gradient(v, powers, coef[..., None, None, :] * amplitude)
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
