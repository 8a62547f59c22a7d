"""What a further slice is expected to save in loss at the target, and whether it is worth its FLOPs.

The recommended rate misses the optimum at the target by an error of the law and by the scatter of that
optimum about the law. The excess loss is the basin's penalty of that miss, averaged over both. A slice makes
the error of the law smaller, not the scatter, so only part of the excess can be saved by slices.

The rule: a slice is worth its FLOPs if it saves more of the loss than the same FLOPs would, added to the run
at the target itself. That run's loss is taken to fall as a power of its compute with the exponent GAIN, so F
FLOPs added to C save GAIN ln(1 + F / C) of it. GAIN is an assumption, which the user can change; 0.05 is the
exponent of arXiv 2001.08361. Runs have 6 N D FLOPs, for N parameters and D tokens; where only width and depth
are known, N is 12 width^2 depth.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from hyperp.analysis.errors import argument
from hyperp.analysis.law.records import BasinRecord, SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.knowledge import Knowledge
from hyperp.validation import Strict

GAIN = 0.05  # exponent of the loss in the compute of one run (arXiv 2001.08361)
LARGEST_PENALTY = 1.0  # a run whose loss is doubled is seen to fail, and no basin describes it
FURTHEST = 8.0  # natural log, of a tabulated miss
UNIT = 1e18  # FLOPs for which a saving is given
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)


class SliceValue(Strict):
    """What one slice is worth, given the slices before it.

    `excess` is the expected relative excess loss at the target afterwards, `saving` by how much it is smaller
    than before, in nats `saving_nats` where the law knows losses. `flops` are those of all runs of the slice,
    `saving_per_1e18` the saving for 1e18 of them, and `same_flops` the saving if they were added to the run
    at the target. `worth` is whether `saving` is more than `same_flops`. None where sizes do not tell FLOPs.
    """

    excess: float
    saving: float
    saving_nats: float | None
    flops: float | None
    saving_per_1e18: float | None
    same_flops: float | None
    worth: bool | None


class TargetValue(Strict):
    """What is to be saved at the target.

    `excess` is the expected relative excess loss of the recommended rate, `scatter` the part of it that no
    slice can save. `flops` are those of one run at the target and `gain` is the assumed exponent of the loss
    in them. `loss` is that of the law's slice nearest to the target, from which nats follow.
    """

    excess: float
    scatter: float
    flops: float | None
    gain: float
    loss: float | None


class Valuation:
    """Prices slices one after the other, for a law with a basin."""

    def __init__(
        self, law: Law, basin: BasinRecord, known: Knowledge, target: Mapping[str, float], gain: float
    ) -> None:
        """Price what is known now; see `value_slices`."""
        used = [s for s in law.slices if s.used]
        self._goal = target
        self._penalty = penalty_table(basin.at(target))
        self._excess = expected_excess(known, self._penalty, target)
        run = run_flops({**used[-1].covariates, **target})
        scatter = mean_penalty(self._penalty, known.weight, np.zeros(1), np.sqrt(known.scatter))
        self.target = TargetValue(
            excess=self._excess,
            scatter=min(scatter, self._excess),
            flops=run,
            gain=gain,
            loss=_nearest_loss(used, target),
        )

    def after(self, known: Knowledge, sizes: Mapping[str, float], runs: int) -> SliceValue:
        """The value of the slice at these sizes, with so many runs, after which `known` is what is known."""
        excess = expected_excess(known, self._penalty, self._goal)
        saving, self._excess = max(self._excess - excess, 0.0), excess
        one, big = run_flops(sizes), self.target.flops
        flops = None if one is None else one * runs
        bought = None
        if flops is not None and big is not None:
            bought = -math.expm1(-self.target.gain * math.log1p(flops / big))
        return SliceValue(
            excess=excess,
            saving=saving,
            saving_nats=None if self.target.loss is None else saving * self.target.loss,
            flops=flops,
            saving_per_1e18=None if flops is None else saving / flops * UNIT,
            same_flops=bought,
            worth=None if bought is None else saving > bought,
        )


def value_slices(law: Law, known: Knowledge, target: Mapping[str, float], gain: float) -> Valuation | None:
    """What further slices are worth at a target; None if the law has no basin.

    Args:
        law: the fitted law.
        known: what it knows now.
        target: a size for every covariate of the law.
        gain: exponent of the loss in the compute of the run at the target.

    Raises:
        ValueError: gain is no positive number.
    """
    if not 0 < gain < math.inf:
        raise ValueError(f"{argument('gain')} must be a positive number, got {gain}")
    return None if law.basin is None else Valuation(law, law.basin, known, target, gain)


def expected_excess(
    known: Knowledge, penalty: Callable[[np.ndarray], np.ndarray], sizes: Mapping[str, float]
) -> float:
    """Expected relative excess loss, at these sizes, of the rate in the middle of what is known."""
    mean, variance = known.moments(sizes)
    sd = np.sqrt(variance + known.scatter)
    return mean_penalty(penalty, known.weight, known.centre(sizes) - mean, sd)


def mean_penalty(
    penalty: Callable[[np.ndarray], np.ndarray], weight: np.ndarray, middle: np.ndarray, sd: np.ndarray
) -> float:
    """The mean penalty of a miss that is a mixture of normals with (H,) weights, means and deviations."""
    costs = penalty(middle[:, None] + sd[:, None] * NODES) @ WEIGHTS / WEIGHTS.sum()
    return float(weight @ costs)


def penalty_table(basin: BasinRecord) -> Callable[[np.ndarray], np.ndarray]:
    """The penalty of a rate that misses its optimum by so many natural logs, at most LARGEST_PENALTY."""
    x = FURTHEST * np.sinh(np.linspace(-6.0, 6.0, 801)) / math.sinh(6.0)  # dense about the optimum
    y = np.clip([basin.penalty(float(v)) for v in x], 0.0, LARGEST_PENALTY)
    return lambda miss: np.interp(miss, x, y)


def run_flops(sizes: Mapping[str, float]) -> float | None:
    """6 N D of one run; None where the sizes tell no parameters or no tokens."""
    tokens = sizes.get("tokens", sizes.get("D"))
    parameters = sizes.get("parameters", sizes.get("N"))
    if parameters is None and "width" in sizes:
        parameters = 12 * sizes["width"] ** 2 * sizes.get("depth", 1)
    return None if tokens is None or parameters is None else 6.0 * float(tokens) * float(parameters)


def _nearest_loss(used: list[SliceRecord], target: Mapping[str, float]) -> float | None:
    """The lowest loss of the slice whose sizes are nearest to the target."""

    def distance(one: SliceRecord) -> float:
        return sum(math.log(size / one.covariates[name]) ** 2 for name, size in target.items())

    best = min(used, key=distance).optimum
    return None if best is None else best.loss
