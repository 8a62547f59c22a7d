"""Learning-rate schedules as a pure function of the step.

Sphere optimizers need no warm-up and decay linearly to a tenth (arXiv 2603.28743); AdamW baselines usually
warm up over the first steps and follow a cosine.
"""

import math
from typing import Annotated, Literal

from hyperp.validation import is_finite, is_integer, must, validated

ScheduleShape = Literal["linear", "cosine", "constant"]


@validated
class Schedule:
    """The multiplier of every group's peak learning rate.

    With w = warmup_steps and n = total_steps, step s counted from 0:

        s < w   (s + 1) / (w + 1), so that no step has a rate of zero
        s >= w  final + (1 - final) * decay((s - w) / (n - w))

    where decay(p) falls from 1 to 0: 1 - p (linear) or (1 + cos(pi p)) / 2 (cosine). `constant` stays at 1
    and ignores `final`. The multiplier would reach `final` at step n, one after the last.

    Args:
        shape: linear, cosine or constant.
        warmup_steps: steps of linear warm-up; 0 starts at the peak.
        final: fraction of the peak at the end of the decay, in [0, 1].

    Raises:
        ValueError: an unknown shape, a negative or fractional warm-up, or a final outside [0, 1].
    """

    shape: ScheduleShape = "linear"
    warmup_steps: Annotated[
        int, must("an integer of at least 0", lambda steps: is_integer(steps) and steps >= 0)
    ] = 0
    final: Annotated[
        float, must("a fraction of the peak in [0, 1]", lambda share: is_finite(share) and 0 <= share <= 1)
    ] = 0.1

    def check_length(self, total_steps: int) -> None:
        """Raise ValueError if the warm-up leaves no step at the peak in a run of `total_steps`."""
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if self.warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps must be below the {total_steps} steps of the run, got {self.warmup_steps}"
            )

    def factor(self, step: int, total_steps: int) -> float:
        """The multiplier in [0, 1] of step `step`, one of 0 ... total_steps - 1; exactly 1 at the peak."""
        self.check_length(total_steps)
        if not 0 <= step < total_steps:
            raise ValueError(f"step must be in 0 ... {total_steps - 1}, got {step}")
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / (total_steps - self.warmup_steps)
        if self.shape == "constant":
            return 1.0
        decay = 1.0 - progress if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final + (1.0 - self.final) * decay
