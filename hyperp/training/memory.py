"""Check that a model fits in memory before it is built: with many layers, building takes hours to fail."""

import os

from hyperp.flops import Shape, count_parameters
from hyperp.scale import Scale

WEIGHT_BYTES = 4  # models are built in float32, in the memory of the host


def check_memory(scale: Scale, shape: Shape) -> None:
    """Raise ValueError if the weights alone need more memory than this machine has."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = WEIGHT_BYTES * count_parameters(scale, shape)
    if needed > there > 0:
        raise ValueError(
            f"scale must be of a model that fits in memory, got {scale}, whose weights alone take "
            f"{needed / 2**30:,.0f} GiB of this machine's {there / 2**30:,.0f}"
        )
