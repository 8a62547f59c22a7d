"""Turn a table of runs into the points of a loss law: drop unusable rows, take the best rate of each cell."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.table.read import to_number
from hyperp.run_table import CONTEXT, COVARIATES

Form = Literal["power", "chinchilla"]
FORM_COLUMNS: dict[Form, tuple[str, ...]] = {"power": ("flops",), "chinchilla": ("parameters", "tokens")}
MOST = 50_000  # points of one law; with so many, its profile and resamples take minutes
DIGITS = 10  # values of x that agree to so many significant digits are one cell


@dataclass(frozen=True)
class LossPoints:
    """Points of one law, sorted, so that the order of the table's rows does not matter.

    Attributes:
        form: the law that the points are for.
        x_Kn: compute in FLOPs, or parameters and tokens.
        loss_n: mean over seeds at the best rate of each cell; with `all_rows`, the loss of each row.
        runs_n: number of finished runs in each cell.
        rows: number of rows of the table.
        dropped: number of rows that were not used, by reason.
        edges: number of cells whose best rate is the lowest or highest one tried; their loss is too high.
        all_rows: whether every row is a point of its own.
        context: the value of each context column, such as the optimizer.
        sizes, rates: the standard covariates and the rates of the largest cell, for suggestions.
    """

    form: Form
    x_Kn: np.ndarray
    loss_n: np.ndarray
    runs_n: np.ndarray
    rows: int
    dropped: dict[str, int]
    edges: int
    all_rows: bool
    context: dict[str, str]
    sizes: dict[str, float] = field(default_factory=dict)
    rates: tuple[float, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the loss, with its unit where the table has a column `metric`."""
        return self.context.get("metric", "loss")


def loss_points(frame: pd.DataFrame, form: Form, all_rows: bool = False) -> LossPoints:
    """Clean a table and take, from each cell of equal x, the lowest loss (mean over seeds) among its rates.

    Args:
        frame: one row for each run, with columns `loss` and `FORM_COLUMNS[form]`; optional are `status`, `lr`
            and `seed`.
        form: the law that the points are for.
        all_rows: make every row a point of its own.

    Raises:
        ValueError: a column is missing, a value is text or not positive, a run appears twice, or the table
            mixes optimizers, metrics or other contexts.
    """
    if form not in FORM_COLUMNS:
        raise ValueError(f"{argument('form')} must be one of {', '.join(FORM_COLUMNS)}, got {form!r}")
    names = FORM_COLUMNS[form]
    missing = [name for name in ("loss", *names) if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{argument('runs')} lacks the column(s) {', '.join(missing)} that form={form} needs; name them "
            f"with {argument('mapping', {missing[0]: 'COLUMN'})}; "
            f"there are {', '.join(map(str, frame.columns))}"
        )
    _refuse_duplicates(frame)
    kept, dropped = _usable_rows(frame, names)
    if kept.empty:
        raise ValueError(
            f"{argument('runs')} holds no finished run with finite loss and {', '.join(names)}: {dropped}"
        )
    context = _single_context(kept)
    cells, edges = (kept.assign(runs=1), 0) if all_rows else _best_of_cells(kept, names)
    if len(cells) > MOST:
        raise ValueError(
            f"{argument('runs')} gives {len(cells)} points, at most {MOST} make a law; "
            f"use {argument('where')}"
        )
    x_Kn = cells[list(names)].to_numpy().T
    loss, runs = cells["loss"].to_numpy(), cells["runs"].to_numpy()
    order = np.lexsort((loss, *x_Kn))
    largest = kept.loc[(kept[list(names)] == kept[list(names)].max()).all(axis=1)]
    largest = kept.loc[[kept[names[-1]].idxmax()]] if largest.empty else largest
    return LossPoints(
        form=form,
        x_Kn=x_Kn[:, order],
        loss_n=loss[order],
        runs_n=runs[order],
        rows=len(frame),
        dropped=dropped,
        edges=edges,
        all_rows=all_rows,
        context=context,
        sizes={n: largest[n].iloc[0].item() for n in COVARIATES if n in largest.columns},
        rates=tuple(sorted(set(largest["lr"].tolist()))) if "lr" in largest.columns else (),
    )


def suggested_run(points: LossPoints, **at: float) -> dict[str, Any]:
    """The run to suggest at a compute, or at parameters and tokens, derived from the largest cell.

    More compute means the same model on more tokens, if the table has them. Other parameters mean another
    model, whose width and depth are left out.

    Args:
        points: the points of the law.
        at: `flops`, or `parameters` and `tokens`.

    Returns:
        Columns and values of the run, with its rates under "lr".
    """
    sizes = dict(points.sizes)
    if "flops" in at and "tokens" in sizes:
        sizes["tokens"] = round(sizes["tokens"] * at.pop("flops") / float(points.x_Kn[0].max()))
    if "parameters" in at:
        sizes = {n: v for n, v in sizes.items() if n not in ("width", "depth")}
    rounded = {n: round(v) if n in ("parameters", "tokens") else float(f"{v:.4g}") for n, v in at.items()}
    return {**points.context, **sizes, **rounded, "lr": list(points.rates)}


def _refuse_duplicates(frame: pd.DataFrame) -> None:
    """Raise ValueError if two rows are alike in every column."""
    if not {"seed", "run_id"} & set(frame.columns):  # without either column, two seeds may look alike
        return
    twins = frame.duplicated(keep=False).to_numpy()
    if twins.any():
        first = int(twins.argmax())
        same = (frame == frame.iloc[first]) | (frame.isna() & frame.iloc[first].isna())
        second = int(np.flatnonzero(same.all(axis=1).to_numpy())[1])
        raise ValueError(
            f"rows {first + 1} and {second + 1} are alike in every column; a run may appear once"
        )


def _usable_rows(frame: pd.DataFrame, names: tuple[str, ...]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The finished rows with finite loss and `names`, and the number of other rows by reason."""
    dropped: dict[str, int] = {}
    kept = frame
    if "status" in frame.columns:
        status = frame["status"].fillna("unknown")
        kept = frame.loc[status == "finished"]
        dropped.update({str(k): int(v) for k, v in status[status != "finished"].value_counts().items()})
    columns = {name: to_number(kept[name]) for name in ("loss", *names)}
    if "lr" in kept.columns:
        columns["lr"] = to_number(kept["lr"])
    kept = kept.assign(**columns)
    finite = np.isfinite(kept[["loss", *names]].to_numpy()).sum(axis=1) == 1 + len(names)
    if not finite.all():
        dropped["not finite"] = int((~finite).sum())
    kept = kept.loc[finite]
    for name in ("loss", *names):
        wrong = (kept[name] <= 0).to_numpy()
        if wrong.any():
            at = int(wrong.argmax())
            value, row = kept[name].iloc[at], kept.index[at] + 1
            raise ValueError(f"column {name} must be positive in a finished run, got {value:g} in row {row}")
    return kept, dropped


def _single_context(kept: pd.DataFrame) -> dict[str, str]:
    """The value of each context column; ValueError if a column has several."""
    context = {}
    for name in (n for n in CONTEXT if n in kept.columns):
        values = sorted(str(v) for v in kept[name].dropna().unique())
        if len(values) > 1:
            raise ValueError(
                f"{name} must have one value for one law, got {', '.join(values[:6])}; "
                f"use {argument('where', {name: values[0]})}"
            )
        if values:
            context[name] = values[0]
    return context


def _best_of_cells(kept: pd.DataFrame, names: tuple[str, ...]) -> tuple[pd.DataFrame, int]:
    """One row for each cell, with the loss of its best rate, and the number of best rates at an edge."""
    settings = [n for n in ("lr", *COVARIATES, "parameters", "flops") if n in kept.columns and n not in names]
    keys = {n: kept[n].map(lambda v: float(f"{v:.{DIGITS}g}")) for n in names}
    keyed = kept.assign(**keys)
    means = keyed.groupby([*names, *settings], dropna=False, as_index=False).agg(
        loss=("loss", "mean"), runs=("loss", "size")
    )
    cells = means.groupby(list(names), sort=True)
    best = means.loc[cells["loss"].idxmin()].reset_index(drop=True)
    best["runs"] = cells["runs"].sum().to_numpy()
    edges = 0
    if "lr" in settings:
        low, high = cells["lr"].min().to_numpy(), cells["lr"].max().to_numpy()
        edges = int((((best["lr"] == low) | (best["lr"] == high)) & (low < high)).sum())
    return best, edges
