"""Gauss-Newton for curves that share a shape: each slice's optimum and floor, and the shape.

A slice has its own floor and its own optimum. Both are eliminated from its equations, which leaves a small
system for the shape, however many slices there are.

The terms of the shape that few runs can tell are shrunk towards zero, as if each had been seen once, at zero,
with the standard deviation that the prior gives it. So three rates in a slice, which identify no cubic term,
leave a parabola. Measured in units of the shape itself:

- a cubic term relative to the curvature, CUBIC_SD for each natural log. Public sweeps have -0.05 to 0.2:
  StepLaw's cells 0.19 along the rate and -0.05 along the batch, a width sweep -0.01 to 0.17.
- the mixed term of two tuned quantities relative to the geometric mean of their curvatures, CROSS_SD. It is
  a correlation, since beyond +-1 there is no bottom: a tilt of 0.9, the strongest that is plausible, lies
  within two standard deviations.
- the exponents of the curvature in the covariates, BEND_SD. It grows as tokens^0.5 on a ladder of small
  models and falls as tokens^-0.2 in StepLaw's cells; in between, one curvature for all counts as noise.

A prior weighs as much as its standard deviation says beside the noise of the runs, which is estimated too.
"""

import math
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.basin.shape import (
    LossCurves,
    invert,
    monomials,
    quadratic_form,
    run_weights,
    shape_gradient,
    subtract_weighted_means,
)

# K: slices   m: runs in the longest slice   p: what is tuned   q: covariates
# S: terms of the shape   C: S + q, all that is common to the slices

CUBIC_SD = 0.3
CROSS_SD = 0.5
BEND_SD = 0.5
LARGEST_LOG_AMPLITUDE = 5.0  # natural log of the factor by which curvatures may differ from the middle
USUAL_NOISE = 0.001  # of a loss; weighs in the strength of the prior as one run does, and nowhere else
MARGIN = 2.0  # natural log by which a location may leave the rates of its slice
LARGEST_STEP = 0.7  # largest move of a location in one step, natural log
ITERATIONS = 60
TOLERANCE = 1e-9  # natural log
RANK = 1e-9  # relative size of a direction of the shape that the runs do not tell


@dataclass(frozen=True)
class BasinParameters:
    """What is fitted.

    Attributes:
        coef: (S,) coefficients of the shape.
        bend: (q,) exponents of the curvature in the covariates.
        optimum: (K, p) natural logs.
        floor: (K,) loss at the optimum.
    """

    coef: np.ndarray
    bend: np.ndarray
    optimum: np.ndarray
    floor: np.ndarray


def amplitude(curves: LossCurves, bend: np.ndarray) -> np.ndarray:
    """Factor (K,) of the shape in each slice, for exponents `bend` (q,) of the curvature."""
    return np.exp(np.clip(curves.sizes @ bend, -LARGEST_LOG_AMPLITUDE, LARGEST_LOG_AMPLITUDE))


@dataclass(frozen=True)
class Equations:
    """The linearised equations of K slices, the floors eliminated.

    Attributes:
        weight, residual: (K, m) of each run.
        F, G: (K, m, C) and (K, m, p), change of the modelled excess loss with what is common and the optimum.
        F_c, G_c, r_c: the same and the residuals, less their weighted means.
        lean: (K, p, C) G_c' W F_c.
        normal: (K, p, p) G_c' W G_c.
        per_seed: (K, m) squared weights over the number of seeds, the variances of the weighted residuals.
    """

    weight: np.ndarray
    residual: np.ndarray
    F: np.ndarray
    G: np.ndarray
    F_c: np.ndarray
    G_c: np.ndarray
    r_c: np.ndarray
    lean: np.ndarray
    normal: np.ndarray
    per_seed: np.ndarray

    @property
    def follow(self) -> np.ndarray:
        """Change of each optimum with what is common, (K, p, C)."""
        return -invert(self.normal) @ self.lean

    @property
    def F_free(self) -> np.ndarray:  # noqa: N802, a matrix
        """`F` where floor and optimum follow, (K, m, C)."""
        return self.F_c + self.G_c @ self.follow

    @property
    def meat(self) -> np.ndarray:
        """The counterpart (K, p, p) of `normal` with the variances of the weighted residuals."""
        return (self.per_seed[..., None] * self.G_c).swapaxes(-1, -2) @ self.G_c


def linearise(curves: LossCurves, powers: np.ndarray, at: BasinParameters, scale: float) -> Equations:
    """The equations at these parameters."""
    v = curves.u - at.optimum[:, None, :]
    excess = curves.loss / at.floor[:, None] - 1
    w = run_weights(excess, curves.count, scale)
    factor = amplitude(curves, at.bend)[:, None, None]
    F, G = monomials(v, powers) * factor, -shape_gradient(v, powers, at.coef) * factor
    shape = F @ at.coef
    residual = excess - shape
    F = np.concatenate([F, shape[..., None] * curves.sizes[:, None, :]], axis=-1)
    both, r_c = subtract_weighted_means(np.concatenate([F, G], axis=-1), residual, w)
    F_c, G_c = both[..., : F.shape[-1]], both[..., F.shape[-1] :]
    weighted = (w[..., None] * G_c).swapaxes(-1, -2)
    per_seed = w**2 / np.maximum(curves.count, 1e-300)
    return Equations(w, residual, F, G, F_c, G_c, r_c, weighted @ F_c, weighted @ G_c, per_seed)


@dataclass(frozen=True)
class Information:
    """What all slices together tell about what is common to them.

    Attributes:
        normal: (C, C) optima and floors eliminated, without the prior.
        spread: (C, C) its counterpart with the variances of the weighted residuals.
        left: degrees of freedom of the noise, E[sum w e^2] for a noise of one.
        runs_left: runs less parameters; without any, the residuals tell nothing about the noise.
        squares: the weighted sum of squared residuals.
    """

    normal: np.ndarray
    spread: np.ndarray
    left: float
    runs_left: int
    squares: float

    @property
    def noise(self) -> tuple[float | None, int]:
        """Residual standard deviation of one run and its degrees of freedom; None and 0 where none is left.

        The weights are at most one, so Satterthwaite's degrees of freedom are at least `left`, and never
        below one.
        """
        if self.runs_left < 1:
            return None, 0
        return math.sqrt(self.squares / self.left), max(int(self.left), 1)


def information(curves: LossCurves, e: Equations) -> Information:
    """What these slices tell about what is common to them, and the degrees of freedom that they leave.

    E[sum w e^2] = noise^2 (tr W - tr (J'WJ)^-1 J'W^2J) over all columns J: floors, optima and what is common.
    """
    free = e.F_free
    normal = np.einsum("kms,km,kmt->st", free, e.weight, free)
    spread = np.einsum("kms,km,kmt->st", free, e.per_seed, free)
    size = (e.weight / np.maximum(curves.count, 1e-300)).sum()
    own = e.per_seed.sum(axis=1) / e.weight.sum(axis=1)
    own += np.trace(invert(e.normal) @ e.meat, axis1=-2, axis2=-1)
    # A direction that optima or floors take wholly is not told, so it takes no degree of freedom.
    unit = np.sqrt(np.maximum(np.einsum("kms,km,kms->s", e.F_c, e.weight, e.F_c), 1e-300))
    values, vectors = np.linalg.eigh(normal / np.outer(unit, unit))
    told = values > RANK
    taken = np.einsum("st,su,ut->t", vectors, spread / np.outer(unit, unit), vectors)[told] / values[told]
    own_parameters = len(curves.labels) * (1 + curves.u.shape[2])
    return Information(
        normal=normal,
        spread=spread,
        left=float(size - own.sum() - taken.sum()),
        runs_left=int((curves.count > 0).sum()) - own_parameters - int(told.sum()),
        squares=float((e.weight * e.residual**2).sum()),
    )


def prior_precision(powers: np.ndarray, coef: np.ndarray, told: Information) -> np.ndarray:
    """Precision (C,) of the prior of all that is common, for a noise of one; zero for a curvature."""
    curvature = np.maximum(np.diag(quadratic_form(powers, coef)), 1e-300)
    degree = powers.sum(axis=1)
    size = np.prod(curvature ** (powers / degree[:, None]), axis=1)
    sd = np.where(degree == 3, CUBIC_SD, 2 * CROSS_SD) * size
    sd[(degree == 2) & (powers.max(axis=1) == 2)] = np.inf
    sd = np.append(sd, np.full(len(told.normal) - len(powers), BEND_SD))
    return (told.squares + USUAL_NOISE**2) / (max(told.left, 0.0) + 1) / sd**2


def descend(
    curves: LossCurves,
    powers: np.ndarray,
    start: BasinParameters,
    scale: float,
    held: bool = False,
    iterations: int = ITERATIONS,
    damping: float = 1e-3,
) -> tuple[BasinParameters, float]:
    """Refine optima, floors and, unless `held`, what is common; the weights are renewed at each step.

    Args:
        curves: the slices.
        powers: (S, p) of the terms of the shape.
        start: where to start.
        scale: of the weights.
        held: keep shape and exponents of the curvature.
        iterations: at most so many steps.
        damping: of the first step, relative to the trace or diagonal; 0 for a warm start.

    Returns:
        The parameters, and how far the last step moved an optimum, in natural logs.

    Raises:
        Refusal: the shape has no bottom.
    """
    at, moved = start, np.inf
    low, high = curves.low - MARGIN, curves.high + MARGIN
    for step in range(iterations):
        e = linearise(curves, powers, at, scale)
        damp = damping * 0.3**step
        trace = np.trace(e.normal, axis1=-2, axis2=-1)[:, None, None]
        bread = invert(e.normal + damp * trace * np.eye(curves.u.shape[2]))
        change = np.zeros(e.F.shape[-1]) if held else _common_step(curves, powers, at, e, damp)
        pull = ((e.weight * e.r_c)[..., None] * e.G_c).sum(axis=1) - e.lean @ change
        move = np.clip((bread @ pull[..., None])[..., 0], -LARGEST_STEP, LARGEST_STEP)
        optimum = np.clip(at.optimum + move, low, high)
        move = optimum - at.optimum
        rest = e.residual - e.F @ change - (e.G @ move[..., None])[..., 0]
        mean = (e.weight * rest).sum(axis=1) / e.weight.sum(axis=1)
        S = len(powers)
        at = BasinParameters(at.coef + change[:S], at.bend + change[S:], optimum, at.floor * (1 + mean))
        _refuse_unless_bowl(powers, at)
        moved = float(np.abs(move).max())
        if moved < TOLERANCE and step >= 5:
            break
    return at, moved


def _refuse_unless_bowl(powers: np.ndarray, at: BasinParameters) -> None:
    finite = np.isfinite(at.coef).all() and np.isfinite(at.floor).all() and (at.floor > 0).all()
    if not finite or np.linalg.eigvalsh(quadratic_form(powers, at.coef)).min() <= 0:
        raise Refusal("the curves together have no bottom: the shared curvature is not positive")


def _common_step(
    curves: LossCurves, powers: np.ndarray, at: BasinParameters, e: Equations, damp: float
) -> np.ndarray:
    """The Gauss-Newton step (C,) of what is common to the slices."""
    told = information(curves, e)
    precision = prior_precision(powers, at.coef, told)
    normal = told.normal + np.diag(precision)
    normal += np.diag(np.diag(normal)) * (damp + 1e-12)
    gradient = np.einsum("kms,km,km->s", e.F_free, e.weight, e.r_c)
    return np.linalg.solve(normal, gradient - precision * np.append(at.coef, at.bend))
