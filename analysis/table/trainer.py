"""Which trainer the runs of a table were of, as far as the table says."""

import pandas as pd

# What `hyperp-sweep collect` writes for every sweep; together they are of no other tool's table.
OF_SWEEPS = ("run_id", "cause", "block", "setting", "base_lr", "monitor_looks", "version")


def trainer_of(frame: pd.DataFrame) -> str | None:
    """What the column `trainer` says, or "hyperp" for a sweep's table without it; None if neither is known.

    A sweep's table names a trainer only for runs that were not of hyperp-train. Runs of several are of none.
    """
    of_sweep = set(OF_SWEEPS) <= set(frame.columns)
    if "trainer" not in frame.columns:
        return "hyperp" if of_sweep else None
    text = frame["trainer"].astype("string").fillna("").str.strip()
    named = set(text.tolist())
    if len(named) != 1:
        return None
    name = str(named.pop())
    return name or ("hyperp" if of_sweep else None)
