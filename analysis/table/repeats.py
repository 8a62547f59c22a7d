"""Runs that were done more than once: with no column seed they are numbered, with one they are an error."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.vocabulary import VARYING_RATIO

REPEATABLE = 0.25  # a result scatters between repeats by less than this part of its whole variance
NOT_INPUTS = ("lr", "loss", "seed", "status", "run_id")


def number_repeats(frame: pd.DataFrame, keys: Sequence[str]) -> tuple[pd.DataFrame, str | None]:
    """Give finished runs that are alike in `keys` the seeds 0, 1, ..., and say so in a note.

    Runs keep one seed, so that `refuse_repeats` names them later, where a column that looks like a setting
    tells them apart, or where they are copies down to the loss.

    Args:
        frame: valid rows with index 0, 1, ..., all with seed 0.
        keys: the columns that tell slices and rates apart.

    Returns:
        the frame with its seeds, and the note; None if nothing is repeated.
    """
    finished = (frame["status"] == "finished") & np.isfinite(frame["loss"])
    group = frame[finished].groupby(list(keys), sort=False).ngroup()
    group = group[group.duplicated(keep=False)]
    if group.empty:
        return frame, None
    rows = frame.loc[group.index]
    several = (
        rows.drop(columns=list({*keys, *NOT_INPUTS} & {*rows.columns})).groupby(group).nunique(dropna=False)
        > 1
    )
    settings = [name for name in several.columns[several.any()] if _is_setting(rows[name], group)]
    mixed = several[settings].any(axis=1)
    copies = rows.duplicated(keep=False).groupby(group).any()
    group = group[~group.map(mixed | copies)]
    if group.empty:
        return frame, None
    # In the order of the table seed 0 might always be the best one, as where it is sorted by loss, and the
    # scatter of the repeats would then be taken for a difference between seeds.
    shuffled = group.sample(frac=1, random_state=0)
    number = shuffled.groupby(shuffled).cumcount()
    seed = frame["seed"].to_numpy(copy=True)
    seed[number.index] = number
    differ = several.loc[group.unique()].any()
    return frame.assign(seed=seed), _note(group, list(map(str, differ.index[differ])))


def _note(group: pd.Series, differ: Sequence[str]) -> str:
    count, most = len(group) - group.nunique(), int(group.value_counts().max())
    rest = f", {', '.join(differ[:4])}{' and more' if len(differ) > 4 else ''}" if differ else ""
    runs = "runs repeat others" if count > 1 else "run repeats another"
    return (
        f"{count} {runs} in everything but the loss{rest}; there is no column seed, so that they count as "
        f"{most} seeds"
    )


def refuse_repeats(pair: pd.DataFrame, over: Sequence[str]) -> None:
    """Raise for two finished runs of one slice, rate and seed, with what would tell them apart.

    Raises:
        ValueError: always.
    """
    at = ", ".join(f"{name}={pair[name].iloc[1]:.6g}" for name in over)
    columns = [c for c in map(str, pair.columns) if c not in ("loss", "run_id")]
    differ = [name for name in columns if pair[name].nunique(dropna=False) > 1]
    sizes = [name for name in differ if pd.api.types.is_numeric_dtype(pair[name])]
    if differ:
        hint = f"they differ in {', '.join(differ[:6])}"
        first = pair[differ[0]].iloc[0]
        ways = [argument("where", {differ[0]: first.item() if isinstance(first, np.generic) else first})]
        ways += [argument("slice_by", name) for name in sizes[:1]]
        advice = f"tell them apart with {' or '.join(ways)}, remove one, or number repeats in a column seed"
    elif pair["loss"].nunique() > 1:
        hint = "they differ in the loss alone"
        advice = "remove one from the table, or give each its own seed"
    else:
        hint = "they are copies down to the loss"
        advice = "remove one from the table"
    raise ValueError(
        f"two finished runs have {at} and seed={pair['seed'].iloc[1]} in one slice ({hint}); {advice}"
    )


def _is_setting(column: pd.Series, group: pd.Series) -> bool:
    """Whether a column that differs between repeats looks like a setting rather than a name, time or result.

    The values of a setting occur again and again, or were drawn at random over a range for every run; results
    differ little between repeats, compared with the rest of the table.
    """
    if column.nunique(dropna=False) <= len(column) / 2:
        return True
    if not pd.api.types.is_float_dtype(column):
        return False
    low, high = column.min(), column.max()
    if low > 0 and high < VARYING_RATIO * low:
        return False
    within = column - column.groupby(group).transform("mean")
    return bool((within**2).sum() > REPEATABLE * ((column - column.mean()) ** 2).sum())
