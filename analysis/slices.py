"""Cut a table of runs into slices: learning-rate curves, everything but rate and seed held."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hyperp.analysis.vocabulary import CONTEXT, COVARIATES


@dataclass(frozen=True)
class Slice:
    """One curve of loss against learning rate.

    `lr`, `seed` and `loss` hold the finished runs with a finite loss, sorted by rate, then seed; `dropped`
    counts the others by status, and `diverged` their rates. `factor` is lr/base_lr where that is one number,
    else None.
    """

    context: dict[str, str]
    covariates: dict[str, int]
    lr: np.ndarray
    seed: np.ndarray
    loss: np.ndarray
    dropped: dict[str, int]
    diverged: tuple[float, ...]
    factor: float | None

    @property
    def label(self) -> str:
        """Every column that defines the slice, for error texts."""
        return " ".join(f"{k}={v}" for k, v in {**self.context, **self.covariates}.items())


def split(frame: pd.DataFrame, unique: bool = True) -> list[Slice]:
    """Slices of a checked table, in the order of their columns' values.

    With `unique` false, runs that share slice, rate and seed are averaged instead.

    Raises:
        ValueError: two finished runs share slice, rate and seed, so the table mixes experiments.
    """
    keys = [*CONTEXT, *COVARIATES]
    groups = frame.groupby(keys, sort=True)
    return [_slice(dict(zip(keys, key, strict=True)), rows, unique) for key, rows in groups]  # pyright: ignore


def _slice(values: dict, rows: pd.DataFrame, unique: bool) -> Slice:
    rows = rows.sort_values(["lr", "seed", "loss"], kind="stable")
    finished = rows["status"] == "finished"
    finite = pd.Series(np.isfinite(rows["loss"].to_numpy(dtype=float)), index=rows.index)
    dropped = Counter(rows.loc[~finished, "status"].tolist())
    if (finished & ~finite).any():
        dropped["finished, loss not finite"] = int((finished & ~finite).sum())
    kept = rows[finished & finite]
    context = {name: str(values[name]) for name in CONTEXT}
    covariates = {name: int(values[name]) for name in COVARIATES}
    twice = kept.duplicated(["lr", "seed"])
    if not unique:
        kept = kept.groupby(["lr", "seed"], as_index=False)["loss"].mean()
    elif twice.any():
        row = kept[twice].iloc[0]
        raise ValueError(
            f"two finished runs have lr={row['lr']:.6g} and seed={row['seed']} in one slice; keep one, "
            f"or tell them apart with --where (e.g. on block)"
        )
    return Slice(
        context=context,
        covariates=covariates,
        lr=kept["lr"].to_numpy(dtype=float),
        seed=kept["seed"].to_numpy(dtype=int),
        loss=kept["loss"].to_numpy(dtype=float),
        dropped={name: int(dropped[name]) for name in sorted(dropped)},
        diverged=tuple(sorted({float(x) for x in rows.loc[rows["status"] == "diverged", "lr"]})),
        factor=_factor(rows),
    )


def _factor(rows: pd.DataFrame) -> float | None:
    if "base_lr" not in rows.columns:
        return None
    ratio = rows["lr"].to_numpy(dtype=float) / rows["base_lr"].to_numpy(dtype=float)
    if not np.all(np.isfinite(ratio)) or np.ptp(ratio) > 1e-6 * abs(ratio[0]):
        return None
    # Snapped, so that rounding in a run's arithmetic does not read as a factor.
    return float(f"{np.median(ratio):.6g}")


def stratum_key(one: Slice, free: Collection[str]) -> tuple:
    """Everything that is held when the covariates in `free` vary."""
    held = tuple(value for name, value in one.covariates.items() if name not in free)
    return (*one.context.values(), *held)


def strata(slices: Sequence[Slice], free: Collection[str]) -> list[list[int]]:
    """Indices of the slices that differ only in the covariates in `free`, in order of appearance."""
    groups: dict[tuple, list[int]] = {}
    for index, one in enumerate(slices):
        groups.setdefault(stratum_key(one, free), []).append(index)
    return list(groups.values())


def varying(slices: Sequence[Slice]) -> dict[str, list]:
    """The context columns and covariates with more than one value among these slices, with their values."""
    found: dict[str, list] = {}
    for part in ("context", "covariates"):
        for name in CONTEXT if part == "context" else COVARIATES:
            values = sorted({getattr(one, part)[name] for one in slices})
            if len(values) > 1:
                found[name] = values
    return found


def short_label(one: Slice, names: Collection[str]) -> str:
    """Only the columns in `names`, such as "muonh, width 32, tokens 65536"."""
    parts = [one.context[n] for n in CONTEXT if n in names]
    parts += [f"{n} {one.covariates[n]}" for n in COVARIATES if n in names]
    return ", ".join(parts) or "the only slice"


def next_point(one: Slice, rates: Sequence[float]) -> dict[str, Any]:
    """A suggestion: run this slice at these rates."""
    return {**one.context, **one.covariates, "lr": [float(f"{rate:.4g}") for rate in rates]}
