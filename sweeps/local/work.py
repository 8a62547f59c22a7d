"""Training runs with workers of this machine, and showing their progress."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing

from hyperp.sweeps.local.pool import Event, LocalLauncher, run_pool
from hyperp.sweeps.local.progress import make_display
from hyperp.sweeps.plan.plan import Point


def run_with_display(todo: Sequence[Point], launcher: LocalLauncher, each: Callable[[Event], None]) -> None:
    """Do the runs: show every event, then call `each` with it. Any exception stops the workers."""
    with make_display(todo) as display, closing(run_pool(todo, launcher, _gpus_for_workers(todo))) as events:
        for event in events:
            display.show(event)
            each(event)


def _gpus_for_workers(todo: Sequence[Point]) -> list[str]:
    from torch import cuda

    from hyperp.sweeps.local.resources import visible_gpu_names

    devices = {point.config.runtime.device for point in todo}
    return visible_gpu_names(devices, os.environ.get("CUDA_VISIBLE_DEVICES"), cuda.device_count())
