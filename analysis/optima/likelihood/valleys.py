"""Which slices are no basin: their loss falls again after it rose, by more than noise does."""

import numpy as np

from hyperp.analysis.optima.likelihood.curves import RateCurves
from hyperp.analysis.optima.likelihood.mode import MISFIT, BasinMode

# K: slices   n: rates in the longest slice

DIP = 0.005  # relative; a smaller fall is no valley
VALLEY = (
    0.05  # relative excess loss; what falls to more than this is erratic near divergence, in good sweeps too
)
NOISES = 5.0  # standard deviations of a difference of two runs that a fall exceeds
QUARTER = 0.3186 * np.sqrt(1.5)  # lower quartile of |second difference| of noise with an SD of one
UNSOUND = 0.34  # share of a slice's means far above the basin at which it is none


def valley_reasons(curves: RateCurves, mode: BasinMode) -> list[str | None]:
    """For each slice, why it has a second valley; None where it has none.

    A single mean above its neighbours is a spike, which weighs next to nothing, unless the slice has no more
    than four rates. The noise is that of neighbouring runs, which two valleys in every slice do not raise.
    """
    noise = min(_neighbour_noise(curves, mode), np.exp(mode.log_noise))
    found: list[str | None] = []
    for k in range(len(curves.u)):
        real = curves.count[k] > 0
        x, y = curves.u[k][real], curves.y[k][real]
        spread = np.sqrt(
            noise**2 / curves.count[k][real] + (MISFIT * np.minimum(mode.model[k][real], VALLEY)) ** 2
        )
        found.append(_second_valley(x, y - 1, spread))
    return found


def _neighbour_noise(curves: RateCurves, mode: BasinMode) -> float:
    """Noise of one run from the lower quartile of second differences of the residuals, over all slices."""
    if curves.seed_df >= 5:
        return float(np.sqrt(curves.seed_squares / curves.seed_df))
    differences = []
    for k in range(len(curves.u)):
        real = curves.count[k] > 0
        r = mode.residual[k][real] * np.sqrt(curves.count[k][real])
        differences.append(np.abs(r[1:-1] - 0.5 * (r[2:] + r[:-2])))
    return float(np.quantile(np.concatenate(differences), 0.25) / QUARTER)


def _second_valley(x: np.ndarray, y: np.ndarray, spread: np.ndarray) -> str | None:
    best = int(np.argmin(y))
    for side in (slice(best, None), slice(best, None, -1)):
        walk, size, at = y[side], spread[side], x[side]
        if len(walk) < 3:
            continue
        ridge = np.maximum.accumulate(walk)
        top = np.array([int(np.argmax(walk[: j + 1])) for j in range(len(walk))])
        fall = np.where(walk > VALLEY, 0.0, ridge - walk)
        clear = np.maximum(DIP, NOISES * np.hypot(size, size[top]))
        for j in np.flatnonzero(fall > clear):
            above = int((walk[:j] > walk[j] + clear[j]).sum())
            if above > 1 or len(y) <= 4:  # one mean alone is a spike
                return f"the loss falls again by {100 * fall[j]:.2g}% at {np.exp(at[j]):.4g}"
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
