"""Words about columns with a 0, which no power law goes through."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hyperp.analysis.table.slices import Slice
from hyperp.run_table import CONTEXT


def zero_warnings(
    slices: Sequence[Slice], frame: pd.DataFrame, by: Sequence[str], over: Sequence[str]
) -> list[str]:
    """A line for each column with a 0 that a law is asked by, and for each that is tuned beside the rate.

    Args:
        slices: all slices of the rows.
        frame: the valid rows that they were cut from.
        by: the covariates of the law, the fixed ones too.
        over: what is tuned within a slice, the rate first.
    """
    found = []
    for name in by:
        if count := sum(one.covariates.get(name) == 0 for one in slices):
            found.append(
                f"{name} is 0 in {count} of {len(slices)} slices, which a law by {name} leaves out: no power "
                "law goes through 0"
            )
    if not over[1:] or "loss" not in frame.columns:
        return found
    done = frame[(frame["status"] == "finished") & np.isfinite(frame["loss"])]
    for name in over[1:]:
        if count := int((done[name] == 0).sum()):
            lowest = done.loc[done.groupby([*CONTEXT, *slices[0].covariates])["loss"].idxmin(), name]
            line = (
                f"{count} run{'s are' if count > 1 else ' is'} left out where {name} is 0, since it is tuned "
                "on a log scale"
            )
            if best := int((lowest == 0).sum()):
                line += f"; the lowest loss of {best} of {len(lowest)} slices is at that 0"
            found.append(line)
    return found
