"""The Python API: what `hyperp.analysis` exports. The commands of hyperp-law call the same functions.

Everything takes a table of runs as a DataFrame, as the path of a Parquet or CSV file (or of a folder that
holds runs.parquet), or as what `read_runs` returns. Columns are named by one string, "N,D", or by a
list. What the functions return is in `results`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperp.analysis.arguments import Names, held_values, prior_values, split_names, where_as_text
from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law import schema
from hyperp.analysis.results import Law, Transfers, whole_sizes
from hyperp.analysis.table.own_columns import points_in_own_columns
from hyperp.analysis.vocabulary import DEFAULT_METHOD, DEFAULT_REACH, LEVEL, WINDOW, MethodName, Space
from hyperp.run_table import COVARIATES

if TYPE_CHECKING:
    import pandas as pd

    from hyperp.analysis.queries.check import TableCheck
    from hyperp.analysis.queries.next_runs import NextRuns
    from hyperp.analysis.queries.validate import Validation
    from hyperp.analysis.table.validate import Runs

    Source = pd.DataFrame | Path | str | Runs


def read_runs(
    source: "pd.DataFrame | Path | str",
    mapping: Mapping[str, str] | None = None,
    sizes: Names = (),
    loss: bool = True,
) -> "Runs":
    """Read and validate a table of runs.

    Args:
        source: a DataFrame, a Parquet or CSV file, or a folder that holds runs.parquet.
        mapping: names that the analysis knows, each with the column that holds it, or with arithmetic on
            columns, such as {"tau": "batch/(lr*wd*tokens)"}: + - * / **, parentheses, sqrt, log, log2, log10
            and exp; a column whose name is no plain word stands in backquotes, `batch size`*2.
        sizes: columns beyond the standard covariates that hold sizes.
        loss: whether the column loss is needed.

    Raises:
        ValueError: no such file, an unknown format, a missing or repeated column, or a value out of range.
    """
    from hyperp.analysis.table.validate import read_runs

    return read_runs(source, mapping, split_names(sizes), loss=loss)


def fit_law(
    runs: "Source",
    by: Names,
    *,
    where: Mapping[str, Any] | None = None,
    fix: Mapping[str, float] | None = None,
    over: Names = "lr",
    also_by: Names = (),
    slice_by: Names = (),
    mapping: Mapping[str, str] | None = None,
    method: MethodName = DEFAULT_METHOD,
    space: Space = "log",
    given: bool = False,
    window: float = WINDOW,
    level: float = LEVEL,
    reach: float = DEFAULT_REACH,
    prior: Mapping[str, tuple[float, float]] | None = None,
    tau_sd: float | None = None,
    bend_sd: float | None = None,
    se: str | None = None,
    command: str = "",
) -> Law:
    """Fit lr = exp(a) * product of covariate^b to the best rates of the slices of a table.

    Args:
        runs: a DataFrame, a path, or what `read_runs` returns.
        by: the covariates whose exponents are estimated.
        where: column values that select the rows to fit; the other slices stay in the law as excluded.
        fix: exponents that are held, such as {"depth": -0.5}, each tested against the data.
        over: what is tuned within a slice: lr, or lr and one or two more columns.
        also_by: the covariates of what is tuned beside the rate; all of `by` unless given.
        slice_by: further columns of sizes that tell slices apart.
        mapping: names for the columns of a foreign table, see `read_runs`.
        method: "hierarchical", the likelihoods of the optima and the law in one model; or how optima are
            found before they are regressed, "shared", "two-stage", "pool" or "argmin".
        space: least squares in log rates, or "linear" in the rates themselves.
        given: every row is already an optimum: its lr is the best rate.
        window: half-width of the parabola's window in octaves, for the method two-stage.
        level: coverage of every interval.
        reach: largest extrapolation factor at which the law recommends without `extrapolate`.
        prior: a mean and a standard deviation for an exponent, such as {"tokens": (-0.32, 0.15)}. It is a
            robust one, with a flat part of 20%; the law says how much it moved the answer.
        tau_sd: scale, in octaves, of the half-Student t prior of the scatter of optima about the law; 0.12
            unless given.
        bend_sd: SD of the bends of the law, per natural log squared; 0.01 unless given, 0 for a pure power
            law.
        se: with `given`, the column of standard errors of ln lr.
        command: the command line to record in the law.

    Raises:
        ValueError: bad input, or several groups of slices that could each carry the law.
        Refusal: no group of slices identifies the law; its `next_points` would change that.
    """
    from hyperp.analysis.law.fit import fit_request
    from hyperp.analysis.law.hierarchy.estimate import BEND_SD, TAU_SD
    from hyperp.analysis.law.request import FitRequest

    request = FitRequest(
        by=split_names(by),
        fix=held_values("fix", fix, "{'depth': -0.5}"),
        where=where_as_text(where),
        over=split_names(over),
        also_by=split_names(also_by),
        slice_by=split_names(slice_by),
        method=method,
        space=space,
        given=given,
        window=window,
        level=level,
        reach=reach,
        prior=prior_values(prior),
        tau_sd=TAU_SD if tau_sd is None else tau_sd,
        bend_sd=BEND_SD if bend_sd is None else bend_sd,
        se=se,
    )
    sizes = [*request.by, *request.fix, *request.slice_by, *request.over[1:]]
    table = _validated_runs(runs, mapping, sizes, request.where, loss=not given)
    with points_in_own_columns(table.mapping):
        return Law.model_validate(dict(fit_request(table, request, command)))


def load_law(path: str | Path) -> Law:
    """Read law.json.

    Raises:
        ValueError: it cannot be read, a field is wrong, or it was changed after it was fitted.
    """
    return schema.load_law(path, Law)


def check(
    runs: "Source",
    *,
    by: Names = (),
    over: Names = "lr",
    where: Mapping[str, Any] | None = None,
    slice_by: Names = (),
    mapping: Mapping[str, str] | None = None,
    method: MethodName = DEFAULT_METHOD,
    window: float = WINDOW,
    level: float = LEVEL,
) -> "TableCheck":
    """Describe a table of runs and which exponents it identifies.

    Args:
        runs: a DataFrame, a path, or what `read_runs` returns.
        by: columns of sizes beyond the standard covariates whose exponents are of interest.
        over, where, slice_by, mapping, method, window, level: see `fit_law`.
    """
    from hyperp.analysis.queries.check import describe_table, find_optima

    sizes, held, tuned = split_names(by), split_names(slice_by), split_names(over)
    rows = where_as_text(where)
    table = _validated_runs(runs, mapping, [*sizes, *held, *tuned[1:]], rows)
    return describe_table(find_optima(table, rows, window, sizes, tuned, method, level, held))


def transfer(
    runs: "Source",
    over: str,
    *,
    where: Mapping[str, Any] | None = None,
    slice_by: Names = (),
    mapping: Mapping[str, str] | None = None,
    method: MethodName = DEFAULT_METHOD,
    window: float = WINDOW,
    level: float = LEVEL,
) -> Transfers:
    """Measure how far the best rate moves along the axis `over`, and what it costs to ignore that.

    Args:
        runs: a DataFrame, a path, or what `read_runs` returns.
        over: the axis, such as "width".
        where, slice_by, mapping, method, window, level: see `fit_law`.

    Raises:
        ValueError: bad input.
        Refusal: the axis does not vary, or no drift is identified; its `next_points` would change that.
    """
    from hyperp.analysis.queries.check import describe_table, find_optima
    from hyperp.analysis.queries.transfer import bracketing_points, measure_transfer, points_further_along

    if not isinstance(over, str):
        raise ValueError(f"{argument('over')} must be the name of one column, got {over!r}")
    columns, rows = (
        [name for name in (over, *split_names(slice_by)) if name not in COVARIATES],
        where_as_text(where),
    )
    table = _validated_runs(runs, mapping, columns, rows)
    held = split_names(slice_by)
    optima = find_optima(table, rows, window, (over,), ("lr",), method, level, held)
    found, groups = describe_table(optima), measure_transfer(optima, over)
    with points_in_own_columns(table.mapping):
        if not groups:
            reason = f"{over} has one value wherever slices are alike in the rest; run another value"
            raise Refusal(reason, points_further_along(found.slices, over))
        if all(one.drift is None for one in groups):
            reason = f"no drift over {over} is identified: {groups[0].problem}"
            raise Refusal(reason, bracketing_points(found.slices, groups))
    return Transfers(over, groups, found.warnings)


def next_runs(
    law: Law,
    count: int = 2,
    among: Sequence[Mapping[str, float]] = (),
    gain: float | None = None,
    **target: float,
) -> "NextRuns":
    """The runs that narrow the prediction interval at a target most for their cost; see `Law.next_runs`."""
    return law.next_runs(count, among, gain, **target)


def validate(
    law: schema.Law,
    runs: "Source",
    *,
    where: Mapping[str, Any] | None = None,
    mapping: Mapping[str, str] | None = None,
) -> "Validation":
    """Test the recommended rate against the others that were run at one target scale.

    Raises:
        ValueError: several scales or contexts, another context than the law's, or no run at the recommended
            rate.
        Refusal: only the recommended rate was run.
    """
    from hyperp.analysis.queries.validate import validate_law

    rows = where_as_text(where)
    table = _validated_runs(runs, mapping, [*law.ranges, *law.held], rows)
    with points_in_own_columns(table.mapping):
        return validate_law(law, table, rows)


def write_report(
    law: schema.Law,
    folder: str | Path,
    *,
    check: "Source | None" = None,
    extrapolate: bool = False,
    command: str = "",
    **target: float,
) -> list[Path]:
    """Write report.md and every plot as PNG, SVG and CSV; returns their paths.

    Args:
        law: what `fit_law` or `load_law` returns.
        folder: the folder to write; created if it does not exist.
        check: runs at a target scale; the report includes their validation.
        extrapolate: recommend beyond the law's reach too.
        command: the command line to print in the report.
        target: sizes to recommend a rate for.
    """
    from hyperp.analysis.report import report

    validation = None if check is None else validate(law, check)
    return report.write_report(law, folder, command, whole_sizes(target) or None, validation, extrapolate)


def _validated_runs(
    source: "Source",
    mapping: Mapping[str, str] | None,
    sizes: Sequence[str],
    where: Mapping[str, str],
    loss: bool = True,
) -> "Runs":
    """The validated table; a name in `sizes` that can be no size is left for the query to refuse."""
    from hyperp.analysis.table.validate import Runs, read_runs
    from hyperp.analysis.vocabulary import NOT_COVARIATES

    extra = [name for name in sizes if name not in (*COVARIATES, *NOT_COVARIATES)]
    if not isinstance(source, Runs):
        return read_runs(source, mapping, extra, where, loss)
    if mapping:
        raise ValueError(
            f"mapping must be given to read_runs when runs are read already, got {dict(mapping)}"
        )
    return source.with_sizes(extra)
