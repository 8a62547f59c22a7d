"""The grid that optima were read off, told from the optima themselves."""

import numpy as np

LEAST_STEP = 0.1  # octaves; people's grids are no finer
EVEN = 0.04  # relative to the step, by which a rounded rate may miss the grid
OCTAVE = 1.0


def grid_step(rates: np.ndarray) -> tuple[float | None, list[str]]:
    """The step in octaves of the grid that these optimal rates lie on, with a note; None if they lie on none.

    Rates that differ by whole multiples of their smallest difference lie on a grid, and so do rates of which
    some are equal. If all are equal nothing tells the step, and a factor of 2 is assumed.
    """
    logs = np.log2(rates)
    distinct = np.sort(logs)[np.append(True, np.diff(np.sort(logs)) > 1e-6)]
    if len(distinct) == 1:
        if len(logs) < 2:
            return None, []
        return OCTAVE, [
            "all optima are equal, so nothing tells the grid that they were read off: a factor of 2 between "
            "rates is assumed, and each optimum known to half an octave"
        ]
    gaps = np.diff(distinct)
    step = float(gaps.min())
    times = np.round(gaps / step)
    even = bool((np.abs(gaps / step - times) < EVEN * np.maximum(times, 1)).all())
    repeated = len(distinct) < len(logs)
    if step < LEAST_STEP or not (even and (repeated or len(distinct) > 2)):
        return None, []
    step = float(gaps.sum() / times.sum())
    return step, [
        f"the optima lie on a grid of rates a factor of {2**step:.3g} apart, so each is known to half a step"
    ]
