"""Bootstrap a loss law: fit all resamples side by side, each from the law itself, and take percentiles."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.loss.fit import LossFit, predict_loss, published_parameters, solver_points
from hyperp.analysis.loss.points import FORM_COLUMNS, suggested_run
from hyperp.analysis.loss.solver import EXPONENTS, parameter_bounds, polish
from hyperp.analysis.vocabulary import LEVEL

ResamplingKind = Literal["pairs", "noise"]
PAIRS_FROM = 10  # points for each free parameter; fewer resampled points could leave a parameter undetermined
# In simulations of checkpoints, 95% intervals from resampling 8 clusters held 92 to 96%, from 6 about 90%.
CLUSTERS_FROM = 8
LARGEST_NOISE = 2.0  # in ln L; Student's t with one degree of freedom has draws without bound
MOST = 2e8  # resamples times points; more would take minutes


@dataclass(frozen=True)
class Draws:
    """Fits of resamples.

    Attributes:
        z_RP: parameters of each resample, as `LossFit.z_P`.
        kind: how the resamples were drawn; see `bootstrap_loss`.
        seed: of the random numbers.
        not_converged: number of fits that did not converge.
        level: coverage of the intervals that are taken from them.
    """

    z_RP: np.ndarray
    kind: ResamplingKind
    seed: int
    not_converged: int
    level: float = LEVEL


def bootstrap_loss(
    fit: LossFit,
    count: int = 1000,
    seed: int = 0,
    kind: ResamplingKind | None = None,
    level: float = LEVEL,
) -> Draws:
    """Fit the law to `count` resamples of its points.

    "pairs" draws points with replacement, each data set as many as it has. Where the points come in clusters,
    such as the checkpoints of runs, it draws clusters with all their points. "noise" draws new losses about
    the law. Their standard deviation is drawn anew for each resample, scatter * sqrt(df / chi^2_df), so that
    with few points the percentiles are as wide as Student's t. The noise is normal in ln L; where the points
    come in clusters, each cluster keeps its residuals up to a sign (the wild cluster bootstrap of Cameron,
    Gelbach and Miller, 2008).

    Args:
        fit: the law.
        count: number of resamples.
        seed: of the random numbers; the order of the table's rows does not change the draws.
        kind: None takes "pairs" with at least ten points for each free parameter and eight clusters, else
            "noise".
        level: coverage of the intervals.

    Raises:
        ValueError: `count` is below 2, or `count` times the number of points is more than MOST; or `level` is
            not between 0 and 1.
        Refusal: all points are of one cluster, which says nothing about how clusters differ.
    """
    n = len(fit.points.loss_n)
    if not 2 <= count <= MOST / n:
        raise ValueError(f"bootstrap must be 2 to {int(MOST / n)} for {n} points, got {count}")
    if not 0 < level < 1:
        raise ValueError(f"{argument('level')} must lie between 0 and 1, got {level}")
    cluster_n = np.arange(n) if fit.points.cluster_n is None else fit.points.cluster_n
    if cluster_n.max() == 0 and n > 1:
        largest = dict(zip(FORM_COLUMNS[fit.points.form], fit.points.x_Kn.max(axis=1).tolist(), strict=True))
        raise Refusal(
            f"all {n} points are of one run ({fit.points.cluster}), so how runs differ cannot be told; run "
            "more",
            [suggested_run(fit.points, **largest)],
        )
    rng = np.random.default_rng(seed)
    data = solver_points(fit.points, fit.centre_K, fit.delta, fit.layout)
    if (kind or _kind(fit, cluster_n)) == "pairs":
        kind = "pairs"
        data = replace(data, weights_Rn=_pair_weights(fit, cluster_n, count, rng))
    else:
        kind = "noise"
        data = replace(data, y_Rn=_noisy_losses(fit, cluster_n, count, rng))
    low, high = parameter_bounds(data, fit.held)
    best = polish(np.tile(fit.z_P, (count, 1)), data, low, high)
    z, value, done = best.z_RP, best.objective_R, best.converged_R
    if kind == "noise":  # with few points, a law with a floor and one without are different minima
        sets, linear = fit.layout.sets, fit.layout.linear
        for factor in (0.5, 2.0):
            start = np.tile(fit.z_P, (count, 1))
            start[:, linear:] = np.clip(start[:, linear:] * factor, *EXPONENTS)
            start[:, :sets] = start[:, :sets] * (1.1 if factor > 1 else 0.5)
            other = polish(start, data, low, high)
            wins = other.objective_R < value
            z, value = np.where(wins[:, None], other.z_RP, z), np.where(wins, other.objective_R, value)
            done = np.where(wins, other.converged_R, done)
    return Draws(z, kind, seed, int((~done).sum()), level)


def _kind(fit: LossFit, cluster_n: np.ndarray) -> ResamplingKind:
    """ "pairs" where there are enough points and clusters in every data set, else "noise"."""
    own = 1 + fit.layout.terms
    for s in range(fit.layout.sets):
        part = fit.points.set_n == s
        if fit.layout.sets > 1 and part.sum() < PAIRS_FROM * own:
            return "noise"
        if len(np.unique(cluster_n[part])) < CLUSTERS_FROM:
            return "noise"
    return "pairs" if len(cluster_n) >= PAIRS_FROM * fit.free else "noise"


def _pair_weights(fit: LossFit, cluster_n: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each resample draws each point (R, n): whole clusters, as many as each data set has.

    Data sets whose losses are of the same runs are drawn together, since a run is drawn or not.
    """
    clusters, sets = int(cluster_n.max()) + 1, fit.layout.sets
    size = clusters + sets
    links = coo_array((np.ones(len(cluster_n)), (cluster_n, clusters + fit.points.set_n)), shape=(size, size))
    stratum = connected_components(links, directed=False)[1][:clusters]
    drawn = np.zeros((count, clusters))
    for one in np.unique(stratum):
        members = np.flatnonzero(stratum == one)
        number = len(members)
        drawn[:, members] = rng.multinomial(number, np.full(number, 1 / number), size=count)
    return drawn[:, cluster_n]


def _noisy_losses(fit: LossFit, cluster_n: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """ln of new losses about the law (R, n); see `bootstrap_loss`."""
    n, law = len(cluster_n), np.log(predict_loss(fit, fit.z_P[None], fit.points.x_Kn, fit.points.set_n))
    clusters = int(cluster_n.max()) + 1
    if clusters == n:
        df = n - fit.free
        spread = fit.scatter * np.sqrt(df / rng.chisquare(df, size=(count, 1)))
        return law + spread * rng.normal(size=(count, n))
    df = max(clusters - fit.free, 1)
    grown = np.sqrt(clusters / df) * np.sqrt(df / rng.chisquare(df, size=(count, 1)))
    sign = rng.choice([-1.0, 1.0], size=(count, clusters))
    noise = grown * sign[:, cluster_n] * fit.residual_n
    return law + np.clip(noise, -LARGEST_NOISE, LARGEST_NOISE)


def parameter_intervals(fit: LossFit, draws: Draws) -> dict[str, tuple[float, float]]:
    """The percentile interval of every parameter, with A_k as published, at x = 1."""
    low, high = percentiles(published_parameters(fit, draws.z_RP), draws.level)
    return {n: (float(a), float(b)) for n, a, b in zip(fit.names, low, high, strict=True)}


def floor_interval(draws: Draws, data_set: int = 0) -> tuple[float, float]:
    """The percentile interval of the floor E of a data set."""
    low, high = percentiles(draws.z_RP[:, data_set], draws.level)
    return float(low), float(high)


def loss_band(
    fit: LossFit, draws: Draws, x_Km: np.ndarray, data_set: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile band of the law itself, not of one more run, at m places; low and high, each (m,)."""
    low, high = percentiles(predict_loss(fit, draws.z_RP, x_Km, data_set), draws.level)
    return low, high


def percentiles(values_R: np.ndarray, level: float) -> np.ndarray:
    """Lower and upper percentile over the resamples (the first axis)."""
    return np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2], axis=0)
