"""Fit a loss law, L(C) = E + A C^-b or L(N, D) = E + A N^-alpha + B D^-beta (arXiv 2203.15556).

As in arXiv 2404.10102, the fit minimises the sum of Huber losses (threshold 1e-3) of the residuals of ln L.
Such fits most often go wrong about how well the data determine the floor E, so every fit comes with the
profile of its floor.

Several data sets can share the exponents. Each then has an E, A and B of its own, because these depend on the
text that the loss is measured on, and on its tokenizer; with the exponents given, they are fitted to the
points of their data set alone.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.errors import argument
from hyperp.analysis.loss.identify import require_identified
from hyperp.analysis.loss.points import FORM_COLUMNS, Form, LossPoints
from hyperp.analysis.loss.solver import (
    EXPONENTS,
    NEGLIGIBLE,
    Layout,
    SolverPoints,
    log_law,
    parameter_bounds,
    polish,
)
from hyperp.analysis.loss.starts import fit_linear_parameters, start_from_linear, starting_points
from hyperp.analysis.vocabulary import HUBER_DELTA

TIE = "alpha=beta"  # the one pair of exponents that can be tied
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
        layout: where the parameters stand in `z_P`.
        z_P: the parameters; the size of a term is that at `centre_K`.
        pins: values that were held, by name.
        delta: Huber's threshold on ln L.
        objective: sum of the Huber losses over the points.
        converged: whether the last Newton step expected no further decrease.
        starts, agree: number of starting points, and how many of them led to this optimum.
        at_bounds: a sentence for each parameter that ended at a bound.
    """

    points: LossPoints
    centre_K: np.ndarray
    layout: Layout
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
        return parameter_names(self.points)

    @property
    def held(self) -> dict[int, float]:
        """The value of every parameter that was pinned, by its index in `z_P`."""
        return pins_by_index(self.points, self.layout, self.pins)

    @property
    def pinned(self) -> dict[str, bool]:
        """Whether each parameter was pinned, by name."""
        layout = self.layout
        tied = [layout.linear + (0 if layout.tied else k) for k in range(layout.terms)]
        indices = [*range(layout.linear), *tied]
        return {name: i in self.held for name, i in zip(self.names, indices, strict=True)}

    @property
    def free(self) -> int:
        """Number of parameters that were fitted, not pinned; tied exponents are one."""
        return self.layout.size - len(self.held)

    @property
    def exponent_names(self) -> tuple[str, ...]:
        """Names of the exponents, which come last among the parameters."""
        return self.names[self.layout.linear :]

    @property
    def residual_n(self) -> np.ndarray:
        """ln(loss) of each point less that of the law (n,); positive where the run is worse than the law."""
        law = predict_loss(self, self.z_P[None], self.points.x_Kn, self.points.set_n)[0]
        return np.log(self.points.loss_n) - np.log(law)

    @property
    def scatter(self) -> float:
        """Standard deviation of ln(loss) about the law, over its degrees of freedom, n less `free`."""
        return float(np.sqrt((self.residual_n**2).sum() / (len(self.residual_n) - self.free)))


@dataclass(frozen=True)
class FloorProfile:
    """The best fit with the floor of one data set held at each of F values.

    Attributes:
        floor_F: the floors, sorted.
        objective_F: sum of Huber losses.
        z_FP: parameters, as `LossFit.z_P`.
        extrapolated_F: loss of that data set at `extrapolation_point`.
        data_set: its index.
    """

    floor_F: np.ndarray
    objective_F: np.ndarray
    z_FP: np.ndarray
    extrapolated_F: np.ndarray
    data_set: int = 0


def parameter_names(points: LossPoints) -> tuple[str, ...]:
    """The parameters of a law: E, A, b, or E, A, B, alpha, beta; with data sets E[NAME], A[NAME], ..."""
    names, K = PARAMETER_NAMES[points.form], len(points.x_Kn)
    if points.by_data is None:
        return names
    return (*(f"{n}[{one}]" for n in names[: 1 + K] for one in points.sets), *names[1 + K :])


def published_parameters(fit: LossFit, z_RP: np.ndarray) -> np.ndarray:
    """Parameters (R, len(fit.names)) as they are published: E, A_k at x = 1, exponents.

    Args:
        fit: the law.
        z_RP: as `LossFit.z_P`, one row for each fit.
    """
    exponents = fit.layout.exponents(z_RP)
    logs = fit.layout.log_terms(z_RP) + (exponents * np.log(fit.centre_K))[:, :, None]
    return np.concatenate([fit.layout.floors(z_RP), np.exp(logs).reshape(len(z_RP), -1), exponents], axis=1)


def predict_loss(fit: LossFit, z_RP: np.ndarray, x_Km: np.ndarray, set_m: np.ndarray | int = 0) -> np.ndarray:
    """Loss (R, m) of each row of parameters at m places `x_Km`, of data sets with index `set_m`."""
    index = np.broadcast_to(set_m, x_Km.shape[1])
    return np.exp(log_law(z_RP, np.log(x_Km / fit.centre_K[:, None]), index, fit.layout))


def fit_loss_law(
    points: LossPoints,
    pins: Mapping[str, float] | None = None,
    delta: float = HUBER_DELTA,
    tie: str | None = None,
) -> LossFit:
    """Fit a loss law.

    Args:
        points: at least one more than the parameters that are not pinned.
        pins: parameters to hold, the floor `E` or exponents, by name; `E` holds that of every data set,
            `E[NAME]` that of one.
        delta: Huber's threshold on ln L.
        tie: "alpha=beta" fits one exponent for both terms.

    Raises:
        ValueError: a pin is unknown or out of range, or `delta` or `tie` is.
        Refusal: the points do not identify the law; the reason names runs that would.
    """
    if not 0 < delta < math.inf:
        raise ValueError(f"{argument('delta')} must be a positive number, got {delta}")
    if tie is not None and (tie.replace(" ", "") not in (TIE, "beta=alpha") or points.form != "chinchilla"):
        raise ValueError(
            f"{argument('tie')} must be {TIE}, with {argument('form', 'chinchilla')}, got {tie!r} with "
            f"form={points.form}"
        )
    pins = dict(pins or {})
    layout = Layout(len(points.x_Kn), len(points.sets), tied=tie is not None)
    held = pins_by_index(points, layout, pins)
    require_identified(points, layout, held)
    centre_K = np.exp(np.log(points.x_Kn).mean(axis=1))
    data = solver_points(points, centre_K, delta, layout)
    low, high = parameter_bounds(data, held)
    starts = starting_points(data, low, high)
    found = polish(starts, data, low, high)
    best = int(np.argmin(found.objective_R))
    least = found.objective_R[best]
    z = found.z_RP[best]
    return LossFit(
        points=points,
        centre_K=centre_K,
        layout=layout,
        z_P=z,
        pins=pins,
        delta=delta,
        objective=float(least),
        converged=bool(found.converged_R[best]),
        starts=len(starts),
        agree=int((found.objective_R <= least * (1 + 1e-6) + 1e-12 * delta**2).sum()),
        at_bounds=_parameters_at_bounds(points, layout, z, held),
    )


def solver_points(points: LossPoints, centre_K: np.ndarray, delta: float, layout: Layout) -> SolverPoints:
    """The points in the coordinates of the solver, each with a weight of one."""
    u_Kn = np.log(points.x_Kn / centre_K[:, None])
    y_Rn, weights_Rn = np.log(points.loss_n)[None], np.ones((1, len(points.loss_n)))
    return SolverPoints(u_Kn, y_Rn, weights_Rn, delta, points.set_n, layout)


def pins_by_index(points: LossPoints, layout: Layout, pins: Mapping[str, float]) -> dict[int, float]:
    """Values to hold, by the index of the parameter in z.

    Raises:
        ValueError: a pin is unknown or out of range, or two pins contradict each other.
    """
    exponents = PARAMETER_NAMES[points.form][1 + layout.terms :]
    floors = {} if points.by_data is None else {f"E[{one}]": [s] for s, one in enumerate(points.sets)}
    places = {"E": list(range(layout.sets)), **floors}
    places |= {n: [layout.linear + (0 if layout.tied else k)] for k, n in enumerate(exponents)}
    held: dict[int, float] = {}
    for name, value in pins.items():
        if name not in places:
            raise ValueError(
                f"{argument('pin')} takes {', '.join(places)} for form={points.form}, got {name!r}"
            )
        for index in places[name]:
            _check_pin(points, name, value, index if index < layout.sets else None)
            if held.setdefault(index, value) != value:
                raise ValueError(f"{argument('pin')} {name} must be {held[index]:g} as well, got {value:g}")
    return held


def _check_pin(points: LossPoints, name: str, value: float, data_set: int | None) -> None:
    """Check the value of the floor of a data set, or of an exponent if that is None."""
    if data_set is None:
        good, allowed = EXPONENTS[0] <= value <= EXPONENTS[1], f"{EXPONENTS[0]:g} to {EXPONENTS[1]:g}"
    else:
        lowest = float(points.loss_n[points.set_n == data_set].min())
        good, allowed = 0 <= value < lowest, f"at least 0 and below the lowest loss {lowest:.6g}"
    if not good:
        raise ValueError(f"{argument('pin')} {name} must be {allowed}, got {value:g}")


def _parameters_at_bounds(
    points: LossPoints, layout: Layout, z_P: np.ndarray, held: Mapping[int, float]
) -> tuple[str, ...]:
    """A sentence for each parameter that is at a bound."""
    names, columns = parameter_names(points), FORM_COLUMNS[points.form]
    reasons = []
    for s, one in enumerate(points.sets):
        least = float(points.loss_n[points.set_n == s].min())
        where = "" if points.by_data is None else f" in {points.by_data}={one}"
        if s not in held and z_P[s] <= 1e-6 * least:
            reasons.append(f"{names[s]} is at 0: the data show no floor")
        for k in range(layout.terms):
            index = layout.sets * (1 + k) + s
            if z_P[index] <= math.log(least * NEGLIGIBLE) + 1:
                reasons.append(f"{names[index]} is at 0: the loss does not fall with {columns[k]}{where}")
    for index in range(layout.linear, layout.size):
        for end in EXPONENTS:
            if index not in held and abs(z_P[index] / end - 1) < 1e-6:
                which = "the exponent of both terms" if layout.tied else names[index]
                reasons.append(f"{which} is at its bound {end:g}")
    return tuple(reasons)


def extrapolation_point(points: LossPoints) -> np.ndarray:
    """Where to extrapolate to (K,): ten times the largest compute, with the N to D ratio of the run there."""
    largest = points.x_Kn[:, int(np.argmax(np.log(points.x_Kn).sum(axis=0)))]
    return largest * EXTRAPOLATE ** (1 / len(largest))


def profile_floor(fit: LossFit, among: tuple[float, float] | None = None, data_set: int = 0) -> FloorProfile:
    """Fit the law again with the floor of one data set held, from 0 to just below its lowest loss.

    Args:
        fit: the law.
        among: two floors between which to place more, such as the ends of an interval; None takes those whose
            objective is within a tenth of the best.
        data_set: index of the data set whose floor is held.
    """
    top = 0.995 * float(fit.points.loss_n[fit.points.set_n == data_set].min())
    floors = np.unique([*np.linspace(0, top, WIDE), min(fit.z_P[data_set], top)])
    z, objective = _fit_at_floors(fit, floors, data_set)
    if among is None:
        near = np.flatnonzero(objective <= 1.1 * objective.min())
        among = float(floors[max(near[0] - 1, 0)]), float(floors[min(near[-1] + 1, len(floors) - 1)])
    more = np.setdiff1d(np.minimum(np.linspace(*among, FINE), top), floors)
    finer = _fit_at_floors(fit, more, data_set)
    floors, objective = np.concatenate([floors, more]), np.concatenate([objective, finer[1]])
    order = np.argsort(floors)
    z = np.concatenate([z, finer[0]])[order]
    far = predict_loss(fit, z, extrapolation_point(fit.points)[:, None], data_set)[:, 0]
    return FloorProfile(floors[order], objective[order], z, far, data_set)


def _fit_at_floors(fit: LossFit, floor_F: np.ndarray, data_set: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (F, P) and objective (F,) of the best fit at each floor of one data set.

    Each fit starts at several exponents, because at a low floor a slow power law of either covariate can take
    the place of the floor.
    """
    layout = fit.layout
    data = solver_points(fit.points, fit.centre_K, fit.delta, layout)
    held = {index: value for index, value in fit.held.items() if index != data_set}
    low, high = parameter_bounds(data, held)
    factors = np.array(list(itertools.product(FACTORS, repeat=layout.size - layout.linear)))
    fitted = np.clip(factors * fit.z_P[layout.linear :], *EXPONENTS)
    exponents = np.tile(np.broadcast_to(fitted, (len(factors), layout.terms)), (len(floor_F), 1))
    floors = np.repeat(floor_F, len(factors))
    each = [np.full(len(floors), held[s]) if s in held else None for s in range(layout.sets)]
    each[data_set] = floors
    linear, _ = fit_linear_parameters(exponents, data, each)
    lows, highs = np.tile(low, (len(floors), 1)), np.tile(high, (len(floors), 1))
    lows[:, data_set] = highs[:, data_set] = floors
    found = polish(start_from_linear(linear, exponents, layout), data, lows, highs)
    value = found.objective_R.reshape(-1, len(factors))
    best = value.argmin(axis=1) + len(factors) * np.arange(len(floor_F))
    return found.z_RP[best], found.objective_R[best]
