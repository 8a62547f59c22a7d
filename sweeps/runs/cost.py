"""What a plan costs: GPU-hours from FLOPs, and the measured speed of the runs that are done."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hyperp.sweeps.runs.status import Run

SECONDS = 3600.0
# TFLOP/s of one GPU in bfloat16 with dense matrices, from NVIDIA's data sheets. The sheets of the H100 and
# H200 SXM (1979) and of the HGX B200 (4500) state it with 2:4 sparsity, which is twice as much; those of the
# A100 and the L40S state both. The RTX 4090's, accumulating in float32, is from the whitepaper on Ada.
PEAK_TFLOPS = {"a100": 312.0, "h100": 989.0, "h200": 989.0, "b200": 2250.0, "l40s": 362.05, "rtx4090": 165.2}


@dataclass(frozen=True)
class AssumedGpu:
    """A GPU, and the share of its peak that training reaches (model FLOPs utilisation, MFU)."""

    gpu: str
    mfu: float

    def __post_init__(self) -> None:
        if self.gpu not in PEAK_TFLOPS:
            raise ValueError(f"--gpu must be one of {', '.join(PEAK_TFLOPS)}, got {self.gpu!r}")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"--mfu must be more than 0 and at most 1, got {self.mfu:g}")

    def hours(self, flops: float) -> float:
        """GPU-hours for a number of FLOPs."""
        return flops / (PEAK_TFLOPS[self.gpu] * 1e12 * self.mfu) / SECONDS

    def sentence(self) -> str:
        """What GPU-hours assume, for people."""
        peak = f"{PEAK_TFLOPS[self.gpu]:g} TFLOP/s in bfloat16"
        return f"GPU-hours: of {self.gpu} at {self.mfu:.0%} of its {peak}; --gpu and --mfu assume otherwise"


DEFAULT_GPU = AssumedGpu("h100", 0.4)


def measured_speed(runs: Iterable[Run]) -> tuple[float, int] | None:
    """FLOPs per second while a run trains, over the runs with a record, and how many runs those are."""
    records = [run.record for run in runs if run.record is not None]
    known = [(one.flops, one.seconds) for one in records if one.flops and one.seconds]
    flops, seconds = (math.fsum(values) for values in zip(*known, strict=True)) if known else (0.0, 0.0)
    return (flops / seconds, len(known)) if seconds else None
