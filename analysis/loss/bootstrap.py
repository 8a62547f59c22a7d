"""Resamples of a loss law, all fitted side by side from the law itself."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hyperp.analysis.loss.fit import LossFit, pins_by_index, predict_loss, published_parameters, solver_points
from hyperp.analysis.loss.solver import EXPONENTS, parameter_bounds, polish
from hyperp.analysis.vocabulary import LEVEL

ResamplingKind = Literal["pairs", "noise"]
PAIRS_FROM = 10  # points for each parameter: with fewer, resampled points leave parameters undetermined
MOST = 2e8  # resamples times points; beyond it the wait takes minutes


@dataclass(frozen=True)
class Draws:
    """z_RP of every resample (see LossFit.z_P), how they were drawn and how many did not converge."""

    z_RP: np.ndarray
    kind: ResamplingKind
    seed: int
    not_converged: int


def bootstrap_loss(
    fit: LossFit, count: int = 1000, seed: int = 0, kind: ResamplingKind | None = None
) -> Draws:
    """Refit `count` resamples.

    "pairs" draws points with replacement. "noise" draws new losses about the law, normal in ln L, with a
    standard deviation that is itself drawn anew each time, scatter * sqrt(df / chi^2_df), so that percentiles
    are as wide as Student's t is for few points.

    Args:
        fit: the law.
        count: resamples.
        seed: of the random numbers; the order of the table's rows does not matter.
        kind: None takes "pairs" where there are ten points for each parameter and "noise" below that.

    Raises:
        ValueError: count times points is beyond reason.
    """
    n = len(fit.points.loss_n)
    if not 2 <= count <= MOST / n:
        raise ValueError(f"bootstrap must be 2 to {int(MOST / n)} for {n} points, got {count}")
    kind = kind or ("pairs" if n >= PAIRS_FROM * fit.free else "noise")
    rng = np.random.default_rng(seed)
    data = solver_points(fit.points, fit.centre_K, fit.delta)
    if kind == "pairs":
        weights = rng.multinomial(n, np.full(n, 1 / n), size=count).astype(float)
        data = replace(data, weights_Rn=weights)
    else:
        df = n - fit.free
        spread = fit.scatter * np.sqrt(df / rng.chisquare(df, size=(count, 1)))
        law = np.log(predict_loss(fit, fit.z_P[None], fit.points.x_Kn))
        data = replace(data, y_Rn=law + spread * rng.normal(size=(count, n)))
    low, high = parameter_bounds(data, pins_by_index(fit.points, fit.pins))
    K = len(fit.centre_K)
    best = polish(np.tile(fit.z_P, (count, 1)), data, low, high)
    z, value, done = best.z_RP, best.objective_R, best.converged_R
    if kind == "noise":  # few points: a floor that appears or vanishes is another basin
        for factor in (0.5, 2.0):
            start = np.tile(fit.z_P, (count, 1))
            start[:, 1 + K :] = np.clip(start[:, 1 + K :] * factor, *EXPONENTS)
            start[:, 0] = start[:, 0] * (1.1 if factor > 1 else 0.5)
            other = polish(start, data, low, high)
            wins = other.objective_R < value
            z, value = np.where(wins[:, None], other.z_RP, z), np.where(wins, other.objective_R, value)
            done = np.where(wins, other.converged_R, done)
    return Draws(z, kind, seed, int((~done).sum()))


def parameter_intervals(fit: LossFit, draws: Draws, level: float = LEVEL) -> dict[str, tuple[float, float]]:
    """The percentile interval of every parameter as published."""
    tail = (1 - level) / 2
    low, high = np.quantile(published_parameters(draws.z_RP, fit.centre_K), [tail, 1 - tail], axis=0)
    return {n: (float(a), float(b)) for n, a, b in zip(fit.names, low, high, strict=True)}


def floor_interval(draws: Draws, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of E."""
    low, high = np.quantile(draws.z_RP[:, 0], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def loss_band(
    fit: LossFit, draws: Draws, x_Km: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile band of the law itself, not of one more run, at m places."""
    tail = (1 - level) / 2
    low, high = np.quantile(predict_loss(fit, draws.z_RP, x_Km), [tail, 1 - tail], axis=0)
    return low, high
