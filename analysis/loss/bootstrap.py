"""Bootstrap a loss law: fit all resamples side by side, each from the law itself, and take percentiles."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hyperp.analysis.loss.fit import LossFit, pins_by_index, predict_loss, published_parameters, solver_points
from hyperp.analysis.loss.solver import EXPONENTS, parameter_bounds, polish
from hyperp.analysis.vocabulary import LEVEL

ResamplingKind = Literal["pairs", "noise"]
PAIRS_FROM = 10  # points for each free parameter; fewer resampled points could leave a parameter undetermined
MOST = 2e8  # resamples times points; more would take minutes


@dataclass(frozen=True)
class Draws:
    """Fits of resamples.

    Attributes:
        z_RP: parameters of each resample, as `LossFit.z_P`.
        kind: how the resamples were drawn; see `bootstrap_loss`.
        seed: of the random numbers.
        not_converged: number of fits that did not converge.
    """

    z_RP: np.ndarray
    kind: ResamplingKind
    seed: int
    not_converged: int


def bootstrap_loss(
    fit: LossFit, count: int = 1000, seed: int = 0, kind: ResamplingKind | None = None
) -> Draws:
    """Fit the law to `count` resamples of its points.

    "pairs" draws points with replacement. "noise" draws new losses about the law, normal in ln L. Their
    standard deviation is drawn anew for each resample, scatter * sqrt(df / chi^2_df), so that with few points
    the percentiles are as wide as Student's t.

    Args:
        fit: the law.
        count: number of resamples.
        seed: of the random numbers; the order of the table's rows does not change the draws.
        kind: None takes "pairs" with at least ten points for each free parameter, else "noise".

    Raises:
        ValueError: `count` is below 2, or `count` times the number of points is more than MOST.
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
    if kind == "noise":  # with few points, a law with a floor and one without are different minima
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
    """The percentile interval of every parameter, with A_k as published, at x = 1."""
    low, high = _percentiles(published_parameters(draws.z_RP, fit.centre_K), level)
    return {n: (float(a), float(b)) for n, a, b in zip(fit.names, low, high, strict=True)}


def floor_interval(draws: Draws, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of the floor E."""
    low, high = _percentiles(draws.z_RP[:, 0], level)
    return float(low), float(high)


def loss_band(
    fit: LossFit, draws: Draws, x_Km: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile band of the law itself, not of one more run, at m places; low and high, each (m,)."""
    low, high = _percentiles(predict_loss(fit, draws.z_RP, x_Km), level)
    return low, high


def _percentiles(values_R: np.ndarray, level: float) -> np.ndarray:
    """Lower and upper percentile over the resamples (the first axis)."""
    return np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2], axis=0)
