"""Fit a loss law, L(C) = E + A C^-b or L(N, D) = E + A N^-alpha + B D^-beta (arXiv 2203.15556).

As in arXiv 2404.10102, the fit minimises the sum of Huber losses (threshold 1e-3) of the residuals of ln L.
Such fits most often go wrong about how well the data determine the floor E, so every fit comes with the
profile of its floor.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.loss.points import FORM_COLUMNS, Form, LossPoints, suggested_run
from hyperp.analysis.loss.solver import (
    EXPONENTS,
    NEGLIGIBLE,
    SolverPoints,
    fit_linear_parameters,
    log_law,
    parameter_bounds,
    polish,
    start_from_linear,
    starting_points,
)

DELTA = 1e-3  # Huber's threshold on ln L
PARAMETER_NAMES: dict[Form, tuple[str, ...]] = {
    "power": ("E", "A", "b"),
    "chinchilla": ("E", "A", "B", "alpha", "beta"),
}
EXTRAPOLATE = 10.0  # times the largest compute, where the profile shows what each floor predicts
WIDE, FINE = 31, 20  # number of floors of the profile over its whole range, and near the optimum
FACTORS = (0.15, 0.8, 1.6)  # times the exponents of the law, where the fits of the profile start


@dataclass(frozen=True)
class LossFit:
    """A fitted loss law.

    Attributes:
        points: the points that it was fitted to.
        centre_K: geometric means of x.
        z_P: (E, ln A_1, ..., exponent_1, ...), with A_k the size of its term at `centre_K`.
        pins: values that were held, by name.
        delta: Huber's threshold on ln L.
        objective: sum of the Huber losses over the points.
        converged: whether the last Newton step expected no further decrease.
        starts, agree: number of starting points, and how many of them led to this optimum.
        at_bounds: a sentence for each parameter that ended at a bound.
    """

    points: LossPoints
    centre_K: np.ndarray
    z_P: np.ndarray
    pins: dict[str, float]
    delta: float
    objective: float
    converged: bool
    starts: int
    agree: int
    at_bounds: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of `published_parameters`."""
        return PARAMETER_NAMES[self.points.form]

    @property
    def free(self) -> int:
        """Number of parameters that were fitted, not pinned."""
        return len(self.names) - len(self.pins)

    @property
    def residual_n(self) -> np.ndarray:
        """ln(loss) of each point less that of the law (n,); positive where the run is worse than the law."""
        return np.log(self.points.loss_n) - np.log(predict_loss(self, self.z_P[None], self.points.x_Kn)[0])

    @property
    def scatter(self) -> float:
        """Standard deviation of ln(loss) about the law, over its degrees of freedom, n less `free`."""
        return float(np.sqrt((self.residual_n**2).sum() / (len(self.residual_n) - self.free)))


@dataclass(frozen=True)
class FloorProfile:
    """The best fit with the floor held at each of F values.

    Attributes:
        floor_F: the floors, sorted.
        objective_F: sum of Huber losses.
        z_FP: parameters, as `LossFit.z_P`.
        extrapolated_F: loss at `extrapolation_point`.
    """

    floor_F: np.ndarray
    objective_F: np.ndarray
    z_FP: np.ndarray
    extrapolated_F: np.ndarray


def published_parameters(z_RP: np.ndarray, centre_K: np.ndarray) -> np.ndarray:
    """Parameters (R, P) as they are published: E, A_k at x = 1, exponents.

    Args:
        z_RP: as `LossFit.z_P`, one row for each fit.
        centre_K: geometric means of x.
    """
    K = len(centre_K)
    terms = np.exp(z_RP[:, 1 : 1 + K] + z_RP[:, 1 + K :] * np.log(centre_K))
    return np.concatenate([z_RP[:, :1], terms, z_RP[:, 1 + K :]], axis=1)


def predict_loss(fit: LossFit, z_RP: np.ndarray, x_Km: np.ndarray) -> np.ndarray:
    """Loss (R, m) of each row of parameters at m places `x_Km`."""
    return np.exp(log_law(z_RP, np.log(x_Km / fit.centre_K[:, None])))


def fit_loss_law(
    points: LossPoints, pins: Mapping[str, float] | None = None, delta: float = DELTA
) -> LossFit:
    """Fit a loss law.

    Args:
        points: at least one more than the parameters that are not pinned.
        pins: parameters to hold, the floor `E` or exponents, by name.
        delta: Huber's threshold on ln L.

    Raises:
        ValueError: a pin is unknown or out of range.
        Refusal: the points do not identify the law; the reason names runs that would.
    """
    pins = dict(pins or {})
    held = pins_by_index(points, pins)
    _refuse_unidentified(points, pins)
    centre_K = np.exp(np.log(points.x_Kn).mean(axis=1))
    data = solver_points(points, centre_K, delta)
    low, high = parameter_bounds(data, held)
    starts = starting_points(data, low, high)
    found = polish(starts, data, low, high)
    best = int(np.argmin(found.objective_R))
    least = found.objective_R[best]
    z = found.z_RP[best]
    return LossFit(
        points=points,
        centre_K=centre_K,
        z_P=z,
        pins=pins,
        delta=delta,
        objective=float(least),
        converged=bool(found.converged_R[best]),
        starts=len(starts),
        agree=int((found.objective_R <= least * (1 + 1e-6) + 1e-12 * delta**2).sum()),
        at_bounds=_parameters_at_bounds(points, z, pins),
    )


def solver_points(points: LossPoints, centre_K: np.ndarray, delta: float) -> SolverPoints:
    """The points in the coordinates of the solver, each with a weight of one."""
    u_Kn = np.log(points.x_Kn / centre_K[:, None])
    return SolverPoints(u_Kn, np.log(points.loss_n)[None], np.ones((1, len(points.loss_n))), delta)


def pins_by_index(points: LossPoints, pins: Mapping[str, float]) -> dict[int, float]:
    """Values to hold, by the index of the parameter.

    Raises:
        ValueError: a pin is unknown or out of range.
    """
    names = PARAMETER_NAMES[points.form]
    allowed = [n for n in names if n not in ("A", "B")]
    held = {}
    for name, value in pins.items():
        if name not in allowed:
            raise ValueError(
                f"{argument('pin')} takes {', '.join(allowed)} for form={points.form}, got {name!r}"
            )
        lowest = float(points.loss_n.min())
        low, high = (0.0, lowest) if name == "E" else EXPONENTS
        if not low <= value <= high or (name == "E" and value == high):
            what = (
                f"at least 0 and below the lowest loss {lowest:.6g}"
                if name == "E"
                else f"{low:g} to {high:g}"
            )
            raise ValueError(f"{argument('pin')} {name} must be {what}, got {value:g}")
        held[names.index(name)] = value
    return held


def _refuse_unidentified(points: LossPoints, pins: Mapping[str, float]) -> None:
    """Raise Refusal, with the runs that would help, unless the points identify every free parameter."""
    names, n = FORM_COLUMNS[points.form], len(points.loss_n)
    free = len(PARAMETER_NAMES[points.form]) - len(pins)
    what = "rows" if points.all_rows else f"distinct ({', '.join(names)})"
    for name, x in zip(names, points.x_Kn, strict=True):
        distinct, need = len(np.unique(x)), 3 - ("E" in pins)
        if distinct == 1:
            more = [_run_beyond(points, name, times) for times in (2, 4, 8)[:free]]
            reason = f"{name} does not vary, it is {x[0]:.4g} everywhere; run at another {name}"
            raise Refusal(reason, more)
        if len(names) > 1 and distinct < need:
            raise Refusal(
                f"{name} has {distinct} values and its term needs {need}; run between or beyond "
                f"{x.min():.4g} and {x.max():.4g}",
                [_run_beyond(points, name, 2)],
            )
    if n < free + 1:
        beyond = " ".join(f"{k} {2 * x.max():.3g}" for k, x in zip(names, points.x_Kn, strict=True))
        pin = f", or pin the floor with {argument('pin', {'E': 'VALUE'})}"
        raise Refusal(
            f"{n} {what} cannot fit {free} parameters, {free + 1} are needed; run {free + 1 - n} more, "
            f"such as at {beyond}" + ("" if "E" in pins else pin),
            [
                _run_beyond(points, names[k % len(names)], 2 ** (1 + k // len(names)))
                for k in range(free + 1 - n)
            ],
        )
    if len(names) == 2:
        together = float(np.corrcoef(np.log(points.x_Kn))[0, 1])
        if abs(together) > 0.999:
            raise Refusal(
                f"parameters and tokens move together (correlation {together:.4f} of their logs), so their "
                "terms cannot be told apart; run the same model on other token budgets, or fit "
                f"{argument('form', 'power')}",
                [_run_beyond(points, "tokens", times) for times in (4, 1 / 4)],
            )


def _run_beyond(points: LossPoints, name: str, times: float) -> dict[str, Any]:
    """A run at `times` the largest value of one column, the other column at its largest value."""
    largest = dict(zip(FORM_COLUMNS[points.form], points.x_Kn.max(axis=1).tolist(), strict=True))
    return suggested_run(points, **{**largest, name: times * largest[name]})


def _parameters_at_bounds(points: LossPoints, z_P: np.ndarray, pins: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for each parameter that is at a bound."""
    names, K = PARAMETER_NAMES[points.form], len(points.x_Kn)
    least = float(points.loss_n.min())
    reasons = []
    if "E" not in pins and z_P[0] <= 1e-6 * least:
        reasons.append("E is at 0: the data show no floor")
    for k in range(K):
        if z_P[1 + k] <= math.log(least * NEGLIGIBLE) + 1:
            reasons.append(
                f"{names[1 + k]} is at 0: the loss does not fall with {FORM_COLUMNS[points.form][k]}"
            )
        name, value = names[1 + K + k], z_P[1 + K + k]
        for end in EXPONENTS:
            if name not in pins and abs(value / end - 1) < 1e-6:
                reasons.append(f"{name} is at its bound {end:g}")
    return tuple(reasons)


def extrapolation_point(points: LossPoints) -> np.ndarray:
    """Where to extrapolate to (K,): ten times the largest compute, with the N to D ratio of the run there."""
    largest = points.x_Kn[:, int(np.argmax(np.log(points.x_Kn).sum(axis=0)))]
    return largest * EXTRAPOLATE ** (1 / len(largest))


def profile_floor(fit: LossFit, among: tuple[float, float] | None = None) -> FloorProfile:
    """Fit the law again with the floor held, from 0 to just below the lowest loss.

    Args:
        fit: the law.
        among: two floors between which to place more, such as the ends of an interval; None takes those whose
            objective is within a tenth of the best.
    """
    top = 0.995 * float(fit.points.loss_n.min())
    floors = np.unique([*np.linspace(0, top, WIDE), min(fit.z_P[0], top)])
    z, objective = _fit_at_floors(fit, floors)
    if among is None:
        near = np.flatnonzero(objective <= 1.1 * objective.min())
        among = float(floors[max(near[0] - 1, 0)]), float(floors[min(near[-1] + 1, len(floors) - 1)])
    more = np.setdiff1d(np.minimum(np.linspace(*among, FINE), top), floors)
    finer = _fit_at_floors(fit, more)
    floors, objective = np.concatenate([floors, more]), np.concatenate([objective, finer[1]])
    order = np.argsort(floors)
    z = np.concatenate([z, finer[0]])[order]
    far = predict_loss(fit, z, extrapolation_point(fit.points)[:, None])[:, 0]
    return FloorProfile(floors[order], objective[order], z, far)


def _fit_at_floors(fit: LossFit, floor_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (F, P) and objective (F,) of the best fit at each floor.

    Each fit starts at several exponents, because at a low floor a slow power law of either covariate can take
    the place of the floor.
    """
    data = solver_points(fit.points, fit.centre_K, fit.delta)
    K, held = len(fit.centre_K), pins_by_index(fit.points, {k: v for k, v in fit.pins.items() if k != "E"})
    low, high = parameter_bounds(data, held)
    factors = np.array(list(itertools.product(FACTORS, repeat=K)))
    exponents = np.tile(np.clip(factors * fit.z_P[1 + K :], *EXPONENTS), (len(floor_F), 1))
    floors = np.repeat(floor_F, len(factors))
    linear, _ = fit_linear_parameters(exponents, data, floors)
    lows, highs = np.tile(low, (len(floors), 1)), np.tile(high, (len(floors), 1))
    lows[:, 0] = highs[:, 0] = floors
    found = polish(start_from_linear(linear, exponents), data, lows, highs)
    value = found.objective_R.reshape(-1, len(factors))
    best = value.argmin(axis=1) + len(factors) * np.arange(len(floor_F))
    return found.z_RP[best], found.objective_R[best]
