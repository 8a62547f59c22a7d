"""Which slices are no basin: their loss falls again after it rose, by more than noise does."""

import numpy as np

from hyperp.analysis.optima.likelihood.curves import LEAST_SEED_DF, RateCurves
from hyperp.analysis.optima.likelihood.mode import MISFIT, BasinMode

# K: slices   n: rates in the longest slice

DIP = 0.005  # relative; a smaller fall is no valley
VALLEY = (
    0.05  # relative excess loss; what falls to more than this is erratic near divergence, in good sweeps too
)
NOISES = 5.0  # standard deviations of a difference of two runs that a fall exceeds
QUARTER = 0.3186 * np.sqrt(1.5)  # lower quartile of |second difference| of noise with an SD of one
FEW = 4  # rates up to which one mean above its neighbours makes a valley
UNSOUND = 0.34  # share of a slice's means far above the basin at which it is none


def valley_reasons(curves: RateCurves, mode: BasinMode) -> list[str | None]:
    """For each slice, why it has a second valley; None where it has none.

    A single mean above its neighbours is a spike, which weighs next to nothing, unless the slice has no more
    than four rates. The noise is that of neighbouring runs. Two valleys in every slice raise that too, so
    what is on the same side of the best rate in all of three slices or more has to exceed the seeds' noise.
    """
    noise = min(_neighbour_noise(curves, mode), np.exp(mode.log_noise))
    own = [_second_valley(curves, mode, k, noise, DIP, 2) for k in range(len(curves.u))]
    seeds = _seed_noise(curves) or 0.0
    common = [_second_valley(curves, mode, k, seeds, 2 * DIP, 1) for k in range(len(curves.u))]
    sides = {found[1] for found in common if found is not None}
    if len(common) > 2 and all(common) and len(sides) == 1:
        own = common
    return [None if found is None else found[0] for found in own]


def _seed_noise(curves: RateCurves) -> float | None:
    """Noise of one run by what seeds say; None if they say too little."""
    if curves.seed_df < LEAST_SEED_DF:
        return None
    return float(np.sqrt(curves.seed_squares / curves.seed_df))


def _neighbour_noise(curves: RateCurves, mode: BasinMode) -> float:
    """Noise of one run from the lower quartile of second differences of the residuals, over all slices."""
    if (seeds := _seed_noise(curves)) is not None:
        return seeds
    differences = []
    for k in range(len(curves.u)):
        real = curves.count[k] > 0
        r = mode.residual[k][real] * np.sqrt(curves.count[k][real])
        differences.append(np.abs(r[1:-1] - 0.5 * (r[2:] + r[:-2])))
    return float(np.quantile(np.concatenate(differences), 0.25) / QUARTER)


def _second_valley(
    curves: RateCurves, mode: BasinMode, k: int, noise: float, dip: float, ridge: int
) -> tuple[str, int] | None:
    """Why slice k has a second valley, and on which side of its best rate (1 above, -1 below).

    A valley is a fall of more than `dip` and of more than noise makes, behind at least `ridge` higher means.
    """
    real = curves.count[k] > 0
    x, y = curves.u[k][real], curves.y[k][real] - 1
    misfit = MISFIT * np.minimum(mode.model[k][real], VALLEY) if noise else 0.0
    spread = np.sqrt(noise**2 / curves.count[k][real] + misfit**2)
    best = int(np.argmin(y))
    for side in (1, -1):
        outwards = slice(best, None, side)
        walk, size, at = y[outwards], spread[outwards], x[outwards]
        top = np.array([int(np.argmax(walk[: j + 1])) for j in range(len(walk))])
        fall = np.where(walk > VALLEY, 0.0, np.maximum.accumulate(walk) - walk)
        clear = np.maximum(dip, NOISES * np.hypot(size, size[top]))
        for j in np.flatnonzero(fall > clear):
            above = int((walk[:j] > walk[j] + DIP).sum())
            if above >= ridge or len(y) <= FEW:
                return f"the loss falls again by {100 * fall[j]:.2g}% at {np.exp(at[j]):.4g}", side
    return None


def uneven_reasons(curves: RateCurves, mode: BasinMode) -> list[str | None]:
    """For each slice, why it is no basin although its loss does not fall again; None where it is one."""
    found: list[str | None] = []
    for k in range(len(curves.u)):
        real = curves.count[k] > 0
        unsound = int((mode.sound[k][real] < 0.5).sum())
        if unsound > max(1, UNSOUND * real.sum()):
            found.append(f"{unsound} of {int(real.sum())} rates lie far above the basin of the other slices")
        else:
            found.append(None)
    return found
