"""Cut a table of runs into slices: the runs that differ only in what is tuned and in the seed."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from hyperp.analysis.table.repeats import refuse_repeats
from hyperp.run_table import CONTEXT, COVARIATES, NOT_DONE

Number = int | float
NOT_FINITE = "finished, loss not finite"
BLEW_UP = "finished, blew up"
FAR_ABOVE = "finished, far above the other seeds"


@dataclass(frozen=True)
class Slice:
    """One curve of loss against learning rate, or one surface against rate and batch.

    Attributes:
        context: the columns of `run_table.CONTEXT`, such as optimizer; empty text where not known.
        covariates: the sizes, in the order of the table.
        lr, seed, loss: the finished runs with a finite loss, sorted by rate, then seed.
        dropped: how many other runs there are, by status, or because what is tuned beside the rate is 0.
        diverged, pending: the rates of the runs that diverged, and of those that are not done.
        factor: lr/base_lr where all runs have the same one, else None.
        tuned: an array for each column that is tuned beside the rate.
    """

    context: dict[str, str]
    covariates: dict[str, Number]
    lr: np.ndarray
    seed: np.ndarray
    loss: np.ndarray
    dropped: dict[str, int]
    diverged: tuple[float, ...]
    factor: float | None
    tuned: dict[str, np.ndarray] = field(default_factory=dict)
    pending: tuple[float, ...] = ()

    def without(self, runs: np.ndarray, why: str) -> "Slice":
        """The slice without the runs of the mask `runs` (n,), which count as dropped for `why`."""
        kept = {name: getattr(self, name)[~runs] for name in ("lr", "seed", "loss")}
        tuned = {name: values[~runs] for name, values in self.tuned.items()}
        dropped = {**self.dropped, why: self.dropped.get(why, 0) + int(runs.sum())}
        return replace(self, **kept, tuned=tuned, dropped={name: dropped[name] for name in sorted(dropped)})

    def label(self, names: Collection[str]) -> str:
        """The values of the columns in `names`, such as "muonh, width 32, tokens 65536"."""
        parts = [v for n, v in self.context.items() if n in names and v]
        parts += [f"{n} {v:.10g}" for n, v in self.covariates.items() if n in names]
        return ", ".join(parts) or "the only slice"

    def next_point(self, rates: Sequence[float]) -> dict[str, Any]:
        """This slice at these rates, as a run to suggest; rates are rounded unless a planned run has them."""
        point = {
            **{n: v for n, v in self.context.items() if v},
            **self.covariates,
            "lr": [rate if rate in self.pending else float(f"{rate:.4g}") for rate in rates],
        }
        return point if self.factor in (None, 1.0) else {**point, "factor": self.factor}


def _size_columns(frame: pd.DataFrame, extra: Sequence[str] = (), over: Sequence[str] = ("lr",)) -> list[str]:
    """The columns of sizes that define a slice: the standard ones in the table, then those in `extra`."""
    named = [name for name in dict.fromkeys(extra) if name not in COVARIATES]
    return [name for name in (*COVARIATES, *named) if name in frame.columns and name not in over]


def cut_slices(
    frame: pd.DataFrame, unique: bool = True, extra: Sequence[str] = (), over: Sequence[str] = ("lr",)
) -> list[Slice]:
    """The slices of a validated table, sorted by the columns that define them.

    Args:
        frame: the frame of a `Runs`.
        unique: refuse runs that share slice, rate and seed; with False they are averaged.
        extra: columns beyond the standard covariates that tell slices apart.
        over: what is tuned within a slice, the rate first.

    Raises:
        ValueError: two finished runs share slice, rate and seed, so that the table mixes experiments.
    """
    if frame.empty:
        return []
    names = _size_columns(frame, extra, over)
    code = frame.groupby([*CONTEXT, *names], sort=True).ngroup().to_numpy()
    tuned = [frame[name].to_numpy(dtype=float) for name in over]
    seed, loss = frame["seed"].to_numpy(), frame["loss"].to_numpy(dtype=float)
    order = np.lexsort((loss, seed, *tuned[::-1], code))
    rows = _Rows(frame.iloc[order], code[order], [t[order] for t in tuned], seed[order], loss[order])
    rows = rows.averaged(rows.repeats()) if not unique else rows
    if unique:
        rows.refuse_repeats(over)
    return list(rows.slices(names, over))


@dataclass(frozen=True)
class _Rows:
    """The table sorted by slice, tuned values, seed and loss, as arrays."""

    frame: pd.DataFrame
    code: np.ndarray
    tuned: list[np.ndarray]
    seed: np.ndarray
    loss: np.ndarray

    @property
    def finished(self) -> np.ndarray:
        return (self.frame["status"] == "finished").to_numpy()

    @property
    def kept(self) -> np.ndarray:
        """The runs with a loss whose tuned quantities have a logarithm."""
        return self.finished & np.isfinite(self.loss) & np.all([t > 0 for t in self.tuned], axis=0)

    def repeats(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the rows that hold a loss, and for each whether it repeats the one before."""
        kept = np.flatnonzero(self.kept)
        same = np.zeros(len(kept), dtype=bool)
        same[1:] = True
        for values in (self.code, self.seed, *self.tuned):
            same[1:] &= values[kept[1:]] == values[kept[:-1]]
        return kept, same

    def refuse_repeats(self, over: Sequence[str]) -> None:
        kept, same = self.repeats()
        if same.any():
            first = int(np.flatnonzero(same)[0])
            refuse_repeats(self.frame.iloc[kept[first - 1 : first + 1]], over)

    def averaged(self, found: tuple[np.ndarray, np.ndarray]) -> "_Rows":
        kept, same = found
        if not same.any():
            return self
        group = np.cumsum(~same) - 1
        mean = np.bincount(group, weights=self.loss[kept]) / np.bincount(group)
        loss = self.loss.copy()
        loss[kept] = mean[group]
        keep = np.ones(len(self.code), dtype=bool)
        keep[kept[same]] = False
        tuned = [t[keep] for t in self.tuned]
        return _Rows(self.frame[keep], self.code[keep], tuned, self.seed[keep], loss[keep])

    def slices(self, names: Sequence[str], over: Sequence[str]) -> Iterator[Slice]:
        starts = np.flatnonzero(np.diff(self.code, prepend=-1))
        ends = np.append(starts[1:], len(self.code))
        keys = self.frame.iloc[starts]
        context = [
            dict(zip(CONTEXT, row, strict=True)) for row in keys[list(CONTEXT)].itertuples(index=False)
        ]
        columns = [keys[n].tolist() for n in names]  # tolist: Python's own numbers
        sizes = [{n: column[i] for n, column in zip(names, columns, strict=True)} for i in range(len(starts))]
        status = self.frame["status"].to_numpy()
        kept, why = self.kept, self.reasons(over)
        ratio = _ratios_to_base(self.frame, self.tuned[0])
        for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            part = slice(start, end)
            keep = kept[part]
            dropped: Counter[str] = Counter()
            if not keep.all():
                dropped.update(why[part][~keep].tolist())
            yield Slice(
                context={n: str(v) for n, v in context[i].items()},
                covariates=sizes[i],
                lr=self.tuned[0][part][keep],
                seed=self.seed[part][keep],
                loss=self.loss[part][keep],
                dropped={name: dropped[name] for name in sorted(dropped)},
                diverged=self.rates_of(part, status[part] == "diverged"),
                pending=self.rates_of(part, np.isin(status[part], NOT_DONE)),
                factor=None if ratio is None else _common_factor(ratio[part]),
                tuned={n: self.tuned[j][part][keep] for j, n in enumerate(over) if j},
            )

    def reasons(self, over: Sequence[str]) -> np.ndarray:
        """Why each row would be dropped: its status, a loss that is not finite, or what is tuned being 0."""
        why = self.frame["status"].to_numpy().astype(object)
        finite = np.isfinite(self.loss)
        why[self.finished & ~finite] = NOT_FINITE
        for name, values in zip(over[1:], self.tuned[1:], strict=True):
            why[self.finished & finite & (values == 0)] = f"at {name} 0"
        return why

    def rates_of(self, part: slice, chosen: np.ndarray) -> tuple[float, ...]:
        rates = np.unique(self.tuned[0][part][chosen])
        return tuple(rates[np.isfinite(rates)].tolist())


def _ratios_to_base(frame: pd.DataFrame, lr: np.ndarray) -> np.ndarray | None:
    return lr / frame["base_lr"].to_numpy(dtype=float) if "base_lr" in frame.columns else None


def _common_factor(ratio: np.ndarray) -> float | None:
    ratio = ratio[~np.isnan(ratio)]  # runs that have not finished may have no rate
    low, high = (float(ratio.min()), float(ratio.max())) if len(ratio) else (np.nan, np.nan)
    if not np.isfinite(high - low) or high - low > 1e-6 * abs(low):
        return None
    # Rounded to six digits: the rates of runs are rounded too.
    return float(f"{np.median(ratio):.6g}")


def _stratum_key(one: Slice, free: Collection[str]) -> tuple:
    """The values of every column that defines the slice; of those in `free`, only whether they are 0."""
    held = tuple(value == 0 if name in free else value for name, value in one.covariates.items())
    return (*one.context.values(), *held)


def strata(slices: Sequence[Slice], free: Collection[str]) -> list[list[int]]:
    """Indices of the slices that differ only in the covariates in `free`, in order of appearance.

    Slices where one of these is 0 are never with the others, since no power law goes through 0.
    """
    groups: dict[tuple, list[int]] = {}
    for index, one in enumerate(slices):
        groups.setdefault(_stratum_key(one, free), []).append(index)
    return list(groups.values())


def varying_columns(slices: Sequence[Slice]) -> dict[str, list]:
    """The context columns and covariates with more than one value among these slices, with their values."""
    found: dict[str, list] = {}
    for part in ("context", "covariates"):
        for name in getattr(slices[0], part) if slices else ():
            values = sorted({getattr(one, part)[name] for one in slices})
            if len(values) > 1:
                found[name] = values
    return found
