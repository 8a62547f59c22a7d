"""Turn a table of runs into the points of a loss law: drop unusable rows, take the best rate of each cell."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.loss.clusters import checkpoint_warning, cluster_column, components, require_filled
from hyperp.analysis.table.read import to_number
from hyperp.run_table import CONTEXT, COVARIATES

Form = Literal["power", "chinchilla"]
FORM_COLUMNS: dict[Form, tuple[str, ...]] = {"power": ("flops",), "chinchilla": ("parameters", "tokens")}
SET = "name of the data set"  # a column of our own, for the name of each row's data set
MOST = 50_000  # points of one law; with so many, its profile and resamples take minutes
MOST_SETS = 20  # data sets of one law; with many more, a fit takes minutes
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
        set_n: index of the data set of each point.
        sets: the names of the data sets; one without a name if the law has one.
        by_data: the column that holds them, if any.
        cluster_n: index of the cluster of each point, points whose runs are related; None if not known.
        cluster: the column that tells the runs apart, if any.
        runs: number of runs that it names in the rows of these points.
        warnings: what is unusual about the table.
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
    set_n: np.ndarray
    sets: tuple[str, ...] = ("",)
    by_data: str | None = None
    cluster_n: np.ndarray | None = None
    cluster: str | None = None
    runs: int | None = None
    warnings: tuple[str, ...] = ()
    sizes: dict[str, float] = field(default_factory=dict)
    rates: tuple[float, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the loss, with its unit where the table has a column `metric`."""
        return self.context.get("metric", "loss")

    @property
    def clusters(self) -> int | None:
        """Number of clusters; None if they are not known."""
        return None if self.cluster_n is None else int(self.cluster_n.max()) + 1

    def of_set(self, index: int) -> "LossPoints":
        """The points of one data set alone."""
        own = self.set_n == index
        related = None if self.cluster_n is None else _renumbered(self.cluster_n[own])
        return replace(
            self,
            x_Kn=self.x_Kn[:, own],
            loss_n=self.loss_n[own],
            runs_n=self.runs_n[own],
            set_n=np.zeros(int(own.sum()), dtype=int),
            sets=("",),
            by_data=None,
            cluster_n=related,
        )


def loss_points(
    frame: pd.DataFrame,
    form: Form,
    all_rows: bool = False,
    cluster: str | None = None,
    by_data: str | None = None,
) -> LossPoints:
    """Clean a table and take, from each cell of equal x, the lowest loss (mean over seeds) among its rates.

    Args:
        frame: one row for each run, with columns `loss` and `FORM_COLUMNS[form]`; optional are `status`, `lr`
            and `seed`.
        form: the law that the points are for.
        all_rows: make every row a point of its own.
        cluster: the column that tells runs apart, where several rows are of one run; None takes `run_id` if
            the table has it and a value repeats.
        by_data: the column that tells data sets apart, which share the exponents of the law.

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
    kept, dropped = usable_rows(frame, names)
    if kept.empty:
        raise ValueError(
            f"{argument('runs')} holds no finished run with finite loss and {', '.join(names)}: {dropped}"
        )
    context = single_context(kept, by_data)
    runs = cluster_column(kept, cluster)
    warnings = () if runs is not None else checkpoint_warning(kept, by_data)
    kept = kept.assign(**{SET: _data_sets(kept, by_data)})
    cell_m, cells, edges = _every_row(kept) if all_rows else best_of_cells(kept, names, by_data)
    if len(cells) > MOST:
        raise ValueError(
            f"{argument('runs')} gives {len(cells)} points, at most {MOST} make a law; "
            f"use {argument('where')}"
        )
    related = None if runs is None else components(cell_m, kept[runs], len(cells))
    sets = tuple(sorted(cells[SET].unique()))
    set_n = np.searchsorted(sets, cells[SET].to_numpy(dtype=str))
    x_Kn = cells[list(names)].to_numpy().T
    loss, count = cells["loss"].to_numpy(), cells["runs"].to_numpy()
    order = np.lexsort((*(() if related is None else (related,)), loss, *x_Kn, set_n))
    largest = kept.loc[(kept[list(names)] == kept[list(names)].max()).all(axis=1)]
    largest = kept.loc[[kept[names[-1]].idxmax()]] if largest.empty else largest
    return LossPoints(
        form=form,
        x_Kn=x_Kn[:, order],
        loss_n=loss[order],
        runs_n=count[order],
        rows=len(frame),
        dropped=dropped,
        edges=edges,
        all_rows=all_rows,
        context=context,
        set_n=set_n[order],
        sets=sets,
        by_data=by_data,
        cluster_n=None if related is None else _renumbered(related[order]),
        cluster=runs,
        runs=None if runs is None else int(kept[runs][cell_m >= 0].nunique()),
        warnings=warnings,
        sizes={n: largest[n].iloc[0].item() for n in COVARIATES if n in largest.columns},
        rates=tuple(sorted(set(largest["lr"].tolist()))) if "lr" in largest.columns else (),
    )


def _data_sets(kept: pd.DataFrame, by_data: str | None) -> "pd.Series | str":
    """The name of the data set of each row; empty where there is one law.

    Raises:
        ValueError: no such column, an empty value, or too many values.
    """
    if by_data is None:
        return ""
    asked = argument("by_data", by_data)
    if by_data not in kept.columns:
        raise ValueError(f"{asked}: no such column; there are {', '.join(map(str, kept.columns))}")
    column = kept[by_data]
    require_filled(column, asked)
    if column.nunique() > MOST_SETS:
        raise ValueError(f"{asked} must have at most {MOST_SETS} values, got {column.nunique()}")
    return column.astype(str)


def _renumbered(label_n: np.ndarray) -> np.ndarray:
    """Labels as 0, 1, ... in the order in which they appear."""
    _, first, index = np.unique(label_n, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index.ravel()]


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


def usable_rows(frame: pd.DataFrame, names: tuple[str, ...]) -> tuple[pd.DataFrame, dict[str, int]]:
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


def single_context(kept: pd.DataFrame, by_data: str | None) -> dict[str, str]:
    """The value of each context column but `by_data`; ValueError if a column has several."""
    context = {}
    for name in (n for n in CONTEXT if n in kept.columns and n != by_data):
        values = sorted(str(v) for v in kept[name].dropna().unique())
        if len(values) > 1:
            raise ValueError(
                f"{name} must have one value for one law, got {', '.join(values[:6])}; "
                f"use {argument('where', {name: values[0]})}"
            )
        if values:
            context[name] = values[0]
    return context


def _every_row(kept: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame, int]:
    """Every row as a cell of its own; see `best_of_cells`."""
    return np.arange(len(kept)), kept.assign(runs=1), 0


def best_of_cells(
    kept: pd.DataFrame, names: tuple[str, ...], by_data: str | None
) -> tuple[np.ndarray, pd.DataFrame, int]:
    """The best rate of each cell of equal x in each data set.

    Args:
        kept: the rows, with the column `SET`.
        names: the columns of x.
        by_data: the column of data sets, if any.

    Returns:
        For each row the index of the cell whose loss it is part of, -1 for none; one row for each cell, with
        the loss of its best rate; and the number of best rates at an edge of those tried.
    """
    own = (*names, by_data)
    settings = [n for n in ("lr", *COVARIATES, "parameters", "flops") if n in kept.columns and n not in own]
    keys = {n: kept[n].map(lambda v: float(f"{v:.{DIGITS}g}")) for n in names}
    keyed = kept.assign(**keys)
    setups = keyed.groupby([SET, *names, *settings], dropna=False, sort=True)
    means = setups.agg(loss=("loss", "mean"), runs=("loss", "size")).reset_index()
    cells = means.groupby([SET, *names], sort=True)
    chosen = cells["loss"].idxmin().to_numpy()
    best = means.loc[chosen].reset_index(drop=True)
    best["runs"] = cells["runs"].sum().to_numpy()
    cell_of_setup = np.full(len(means), -1)
    cell_of_setup[chosen] = np.arange(len(best))
    edges = 0
    if "lr" in settings:
        low, high = cells["lr"].min().to_numpy(), cells["lr"].max().to_numpy()
        edges = int((((best["lr"] == low) | (best["lr"] == high)) & (low < high)).sum())
    return cell_of_setup[setups.ngroup().to_numpy()], best, edges
