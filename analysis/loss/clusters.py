"""Which points of a loss law are of one run: their losses err together, so that they are resampled together.

The checkpoints of a run share its seed, its data order and what its size does to it. Resampled as if they
were independent, they give intervals that are much too narrow.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hyperp.analysis.errors import argument
from hyperp.run_table import CONTEXT, COVARIATES

RUN = "run_id"  # the column of runs.parquet that names the run
EVEN = 4  # checkpoints of one run that lie evenly spaced are not by chance from so many on


def cluster_column(kept: pd.DataFrame, asked: str | None) -> str | None:
    """The column that tells runs apart, or None.

    Args:
        kept: the rows that are fitted.
        asked: a column; None takes `run_id`, if it has a value in every row and one repeats.

    Raises:
        ValueError: no such column, or a row without a value.
    """
    if asked is None:
        known = RUN in kept.columns and kept[RUN].notna().all()
        return RUN if known and kept[RUN].duplicated().any() else None
    if asked not in kept.columns:
        raise ValueError(
            f"{argument('cluster', asked)}: no such column; there are {', '.join(map(str, kept.columns))}"
        )
    require_filled(kept[asked], argument("cluster", asked))
    return asked


def require_filled(column: pd.Series, asked: str) -> None:
    """Raise ValueError if a row has no value in the column that the argument `asked` names."""
    empty = column.isna().to_numpy()
    if empty.any():
        row = column.index[int(empty.argmax())] + 1
        raise ValueError(f"{asked}: every row that is fitted must have a value, got none in row {row}")


def components(cell_m: np.ndarray, run_m: pd.Series, cells: int) -> np.ndarray:
    """Label (cells,) the clusters: cells that share a run are in one, also by way of further cells.

    A cell whose loss is a mean over seeds is of several runs.

    Args:
        cell_m: the cell of each row, -1 for none.
        run_m: the run of each row.
        cells: number of cells.
    """
    runs, names = pd.factorize(run_m)
    part = cell_m >= 0
    size = cells + len(names)
    links = coo_array((np.ones(int(part.sum())), (cell_m[part], cells + runs[part])), shape=(size, size))
    return connected_components(links, directed=False)[1][:cells]


def checkpoint_warning(kept: pd.DataFrame, by_data: str | None) -> tuple[str, ...]:
    """A warning where rows look like checkpoints of runs though no column says so; else none.

    Rows that are alike in every size but tokens, with tokens growing, are checkpoints if a column of names
    has one value for all of them and another for other rows, or if their tokens are evenly spaced.
    """
    sizes = [n for n in ("parameters", *COVARIATES) if n in kept.columns and n != "tokens"]
    if "tokens" not in kept.columns or not any(kept[n].notna().all() for n in sizes):
        return ()
    setup = [n for n in (*sizes, "lr", "seed", *CONTEXT, by_data or "") if n in kept.columns]
    label = kept.groupby(setup, dropna=False, sort=False).ngroup()
    grouped = kept["tokens"].groupby(label)
    counts = grouped.size()
    repeated = counts[(counts > 1) & (grouped.nunique() == counts)].index
    if counts[repeated].sum() <= len(kept) / 2 or (RUN in kept.columns and kept[RUN].is_unique):
        return ()
    name = next(_names_of_runs(kept, label, [*setup, "tokens", "status"]), None)
    even = sum(_evenly_spaced(grouped.get_group(one).to_numpy(dtype=float)) for one in repeated)
    if name is None and (even <= len(repeated) / 2 or _told_apart(kept)):
        return ()
    rows, what = int(counts[repeated].sum()), argument("cluster", name or "COLUMN")
    which = "" if name is not None else ", with the column that names the run,"
    return (
        f"{rows} of {len(kept)} rows look like checkpoints of {len(repeated)} runs: they share every size "
        f"but tokens; if they are, the intervals are too narrow, and {what}{which} resamples whole runs",
    )


def _names_of_runs(kept: pd.DataFrame, label: pd.Series, known: list[str]) -> Iterator[str]:
    """Columns of text that have one value for all rows of a label, and another for each label."""
    for column in kept.columns:
        if column in known or pd.api.types.is_numeric_dtype(kept[column]) or kept[column].isna().any():
            continue
        pairs = pd.DataFrame({"label": label, "name": kept[column].astype(str)}).drop_duplicates()
        if pairs["label"].is_unique and pairs["name"].is_unique and len(pairs) > 1:
            yield str(column)


def _told_apart(kept: pd.DataFrame) -> bool:
    """Whether a column of text names every row, so that each is a run."""
    return any(
        not pd.api.types.is_numeric_dtype(kept[name]) and kept[name].is_unique for name in kept.columns
    )


def _evenly_spaced(tokens: np.ndarray) -> bool:
    """Whether at least EVEN token counts have equal steps between them, to 1%."""
    steps = np.diff(np.sort(tokens))
    return len(tokens) >= EVEN and bool(np.ptp(steps) <= 0.01 * steps.mean())


def residual_correlation(residual_n: np.ndarray, cluster_n: np.ndarray) -> float | None:
    """The correlation of two residuals of one cluster, from the analysis of variance; None if it has none.

    Args:
        residual_n: the residual of each point.
        cluster_n: its cluster, as an index.
    """
    counts = np.bincount(cluster_n)
    n, clusters = len(residual_n), len(counts)
    if clusters < 2 or n == clusters:
        return None
    means = np.bincount(cluster_n, weights=residual_n) / counts
    between = float(counts @ (means - residual_n.mean()) ** 2) / (clusters - 1)
    within = float(((residual_n - means[cluster_n]) ** 2).sum()) / (n - clusters)
    size = (n - float(counts @ counts) / n) / (clusters - 1)
    total = between + (size - 1) * within
    return (between - within) / total if total > 0 else None
