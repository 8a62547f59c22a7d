"""The runs of slices as arrays: the mean loss at each rate, what seeds say of the noise, the diverged rates.

A run that blew up but is marked as finished is no part of a basin. Left in, a handful of them would decide
how noisy all runs are, so `drop_blown_up` counts them as diverged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hyperp.analysis.optima.parabola import mean_loss_by_rate
from hyperp.analysis.table.slices import BLEW_UP, FAR_ABOVE, Slice

# K: slices   n: rates in the longest slice

BLOWN_UP = 0.1  # relative excess loss that no basin explains, beyond BLOWN_UP_TIMES what the basin says
BLOWN_UP_TIMES = 3.0
SPIKE_SCALES = 4.0  # robust standard deviations above the other seeds
LEAST_SEED_DF = 5  # degrees of freedom below which seeds tell no spikes


@dataclass(frozen=True)
class RateCurves:
    """Curves of loss against the natural log of the rate; padding has a count of 0.

    Attributes:
        u: (K, n) natural logs of the rates, sorted; padding repeats the first.
        y: (K, n) mean loss at each rate, over the lowest mean of the slice.
        count: (K, n) how many runs each mean averages.
        lowest: (K,) lowest mean loss.
        wall: (K,) natural log of the lowest diverged rate above the best finished one; infinite without one.
        seed_squares, seed_df: sum of the squared deviations of runs from rate and seed means, relative to the
            loss, pooled over slices, and its degrees of freedom.
    """

    u: np.ndarray
    y: np.ndarray
    count: np.ndarray
    lowest: np.ndarray
    wall: np.ndarray
    seed_squares: float
    seed_df: int

    @property
    def low(self) -> np.ndarray:
        """Natural log of the smallest rate of each slice, (K,)."""
        return self.u.min(axis=1)

    @property
    def high(self) -> np.ndarray:
        """Natural log of the largest rate of each slice, (K,)."""
        return self.u.max(axis=1)

    @property
    def best(self) -> np.ndarray:
        """Place of the best rate in each slice, (K,)."""
        return np.where(self.count > 0, self.y, np.inf).argmin(axis=1)


def pack_rate_curves(slices: Sequence[Slice]) -> RateCurves:
    """The runs of `slices`, each with at least one finished run, as arrays."""
    parts = []
    squares, df = 0.0, 0
    for one in slices:
        rates, means = mean_loss_by_rate(one.lr, one.seed, one.loss)
        count = np.unique(one.lr, return_counts=True)[1]
        left, own_df = _seed_residuals(one)
        squares, df = squares + float(left @ left), df + own_df
        above = [r for r in one.diverged if r > rates[np.argmin(means)]]
        parts.append((np.log(rates), means, count, np.log(min(above)) if above else np.inf))
    longest = max(len(u) for u, *_ in parts)
    u, y, count = np.zeros((3, len(parts), longest))
    for k, (own_u, own_y, own_count, _) in enumerate(parts):
        size = len(own_u)
        u[k], y[k] = own_u[0], own_y[0]
        u[k, :size], y[k, :size], count[k, :size] = own_u, own_y, own_count
    lowest = y.min(axis=1)
    walls = np.array([wall for *_, wall in parts])
    return RateCurves(u, y / lowest[:, None], count, lowest, walls, squares, df)


def _seed_residuals(one: Slice) -> tuple[np.ndarray, int]:
    """What is left of each run's relative loss after rate and seed means, and its degrees of freedom."""
    if len(one.lr) == len(np.unique(one.lr)):
        return np.zeros(len(one.lr)), 0
    rate, seed = (np.unique(values, return_inverse=True)[1] for values in (one.lr, one.seed))
    counts = np.bincount(rate) * 1.0
    loss = one.loss / one.loss.min()
    left = loss - (np.bincount(rate, weights=loss) / counts)[rate]
    seeds = int(seed.max()) + 1
    if len(loss) == len(counts) * seeds:  # every seed at every rate: their means are orthogonal
        return left - (np.bincount(seed, weights=left) / np.bincount(seed))[seed], int(
            (len(counts) - 1) * (seeds - 1)
        )
    columns = np.eye(seeds)[seed]
    centred = columns - (np.stack([np.bincount(rate, weights=c) for c in columns.T]) / counts).T[rate]
    fit, _, rank, _ = np.linalg.lstsq(centred, left, rcond=1e-10)
    return left - centred @ fit, int(len(loss) - len(counts) - rank)


def drop_spikes(slices: Sequence[Slice]) -> tuple[list[Slice], int]:
    """Slices without the runs whose loss is far above that of the other seeds at their rate, and how many.

    Far is SPIKE_SCALES robust standard deviations of all runs about their rate and seed means. Two seeds that
    disagree say that one of them is off, and a spike is a loss that is too high. Only the farthest run of a
    slice goes at a time: it has lifted the means of its rate and seed, and with them what is left of all
    other runs.
    """
    found, total = list(slices), 0
    parts = [_seed_residuals(one) for one in found]
    for _ in range(max((len(one.lr) for one in found), default=0)):
        df = sum(own for _, own in parts)
        if df < LEAST_SEED_DF:
            break
        left = np.concatenate([r for (r, own) in parts if own])
        scale = np.median(np.abs(left)) / 0.6745 * np.sqrt(len(left) / df)
        dropped = 0
        for i, (residual, own) in enumerate(parts):
            far = (residual > SPIKE_SCALES * scale) & (residual >= residual.max())
            if not (own and far.any()):
                continue
            one = found[i]
            if len(np.unique(one.lr[~far])) < len(np.unique(one.lr)):
                continue
            found[i] = one.without(far, FAR_ABOVE)
            parts[i] = _seed_residuals(found[i])
            dropped += int(far.sum())
        total += dropped
        if not dropped:
            break
    return found, total


def drop_blown_up(
    slices: Sequence[Slice], centre: np.ndarray, expected: Sequence[np.ndarray], far_up: float
) -> tuple[list[Slice], int]:
    """Slices in which finished runs that blew up count as diverged, and how many such runs there are.

    Args:
        slices: the slices.
        centre: (K,) natural logs of the fitted optima.
        expected: for each slice the relative excess loss of every run by the fitted basin.
        far_up: relative excess loss above which no run says how noisy runs are, since it may have blown up.
    """
    excesses = [one.loss / one.loss.min() - 1 for one in slices]
    left = np.concatenate([(e - model)[e <= far_up] for e, model in zip(excesses, expected, strict=True)])
    # The lowest loss of a slice is low by luck, so that all others are high by about as much.
    noise = float(np.median(np.abs(left - np.median(left)))) / 0.6745
    found, total = [], 0
    for one, m, model, excess in zip(slices, centre, expected, excesses, strict=True):
        blown = (np.log(one.lr) > m) & (excess > BLOWN_UP + BLOWN_UP_TIMES * model + SPIKE_SCALES * noise)
        if not blown.any():
            found.append(one)
            continue
        total += int(blown.sum())
        rates = tuple(sorted({*one.diverged, *np.unique(one.lr[blown]).tolist()}))
        found.append(replace(one.without(blown, BLEW_UP), diverged=rates))
    return found, total
