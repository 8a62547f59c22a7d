"""The Python API of loss laws: what `hyperp.analysis` exports beside `api`, for tables without rates too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperp.analysis.arguments import held_values, require_dict, where_as_text
from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.results_loss import FittedLoss, Isoflop, MeasuredLeverage
from hyperp.analysis.vocabulary import DEFAULT_METHOD, HUBER_DELTA, LEVEL, MethodName

if TYPE_CHECKING:
    import pandas as pd

    from hyperp.analysis.loss.points import Form
    from hyperp.analysis.table.validate import Runs

    Source = pd.DataFrame | Path | str | Runs


def fit_loss(
    runs: "Source",
    form: "Form" = "power",
    *,
    where: Mapping[str, Any] | None = None,
    mapping: Mapping[str, str] | None = None,
    pin: Mapping[str, float] | None = None,
    tie: str | None = None,
    all_rows: bool = False,
    cluster: str | None = None,
    by_data: str | None = None,
    delta: float = HUBER_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
    command: str = "",
) -> FittedLoss:
    """Fit a loss law, L(C) = E + A C^-b or L(N, D) = E + A N^-alpha + B D^-beta, and profile its floor.

    Args:
        runs: a DataFrame, a path, or what `read_runs` returns.
        form: "power", of the column flops, or "chinchilla", of parameters and tokens.
        where, mapping: see `fit_law`.
        pin: parameters to hold, such as {"E": 1.6}.
        tie: "alpha=beta" fits one exponent for both.
        all_rows: every run is a point, not only the best rate of every size.
        cluster: the column that names the run of each row, where a run has several, such as its checkpoints;
            the resamples then draw whole runs. `run_id` is taken where it repeats.
        by_data: the column that names the data set on which the loss was measured. The data sets share the
            exponents, and each has its own E, A and B, with an interval.
        delta: Huber's threshold on ln L.
        bootstrap: resamples for the intervals; 0 leaves the intervals out.
        seed: of the resamples.
        level: coverage of the intervals.
        command: the command line to record in the law.

    Raises:
        ValueError: bad input.
        Refusal: the points do not identify the law; its `next_points` would change that.
    """
    from hyperp.analysis.loss.bootstrap import bootstrap_loss, floor_interval
    from hyperp.analysis.loss.data_sets import exponent_warnings
    from hyperp.analysis.loss.fit import fit_loss_law, profile_floor
    from hyperp.analysis.loss.points import FORM_COLUMNS, loss_points
    from hyperp.analysis.loss.schema import loss_law_record

    wanted = ("loss", *FORM_COLUMNS.get(form, ()))
    frame, source, told = _loss_table(runs, mapping, where, wanted, [cluster, by_data])
    points = loss_points(frame, form, all_rows, cluster, by_data)
    held = held_values("pin", pin, "{'E': 1.6}")
    fit = fit_loss_law(points, held, delta, tie)
    try:
        draws = bootstrap_loss(fit, bootstrap, seed, level=level) if bootstrap else None
    except Refusal as refusal:
        without = f"; {argument('bootstrap', 0)} fits without intervals"
        raise Refusal(refusal.reason + without, refusal.points) from None
    profiles = [
        profile_floor(fit, None if draws is None else floor_interval(draws, index), index)
        for index in range(len(points.sets))
    ]
    warnings = [*told, *points.warnings, *exponent_warnings(fit, draws)]
    law = loss_law_record(fit, profiles, draws, {**source, "command": command, "warnings": warnings})
    return FittedLoss(law, fit, draws, profiles)


def leverage(
    runs: "Source",
    baseline: Mapping[str, str],
    *,
    where: Mapping[str, Any] | None = None,
    mapping: Mapping[str, str] | None = None,
    pin: Mapping[str, float] | None = None,
    cluster: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> MeasuredLeverage:
    """Compare the compute that the baseline and others need for equal loss (CEL, arXiv 2603.28743).

    Args:
        runs: a DataFrame, a path, or what `read_runs` returns.
        baseline: the column that tells the curves apart and its value, such as {"optimizer": "muon"}.
        where, mapping, pin, cluster, bootstrap, seed, level: see `fit_loss`.

    Raises:
        ValueError: bad input.
        Refusal: no curve overlaps the baseline's; its `next_points` would change that.
    """
    from hyperp.analysis.loss.leverage import compute_leverage

    if len(require_dict("baseline", baseline, "{'optimizer': 'muon'}")) != 1:
        raise ValueError(f"baseline must be one column and its value, got {dict(baseline)}")
    ((column, value),) = baseline.items()
    frame, source, told = _loss_table(runs, mapping, where, ("loss", "flops"), [column, cluster])
    held = held_values("pin", pin, "{'E': 1.6}")
    found, series = compute_leverage(frame, str(value), column, held, bootstrap, seed, cluster, level)
    told_first = {"warnings": [*told, *found.warnings]}
    found = found.model_copy(
        update=told_first | {name: source[name] for name in ("records", "records_sha256")}
    )
    return MeasuredLeverage(found, series)


def isoflop(
    runs: "Source",
    budget: float,
    *,
    where: Mapping[str, Any] | None = None,
    mapping: Mapping[str, str] | None = None,
    method: MethodName = DEFAULT_METHOD,
    tolerance: float = 0.01,
    extrapolate: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Isoflop:
    """The parameters and tokens with the lowest loss at a compute budget C = 6 N D.

    From profiles: the runs of one budget are a slice in which the size is what was tuned, and N* = k C^b is
    fitted to the best sizes. Beside it, from the loss surface L(N, D) fitted to all runs (arXiv 2203.15556).

    Args:
        runs: a DataFrame, a path, or what `read_runs` returns, with the column loss and two of parameters,
            tokens and budget. Without budget, runs are grouped by 6 N D.
        budget: the compute C in FLOPs to divide into parameters and tokens.
        where, mapping: see `fit_law`.
        method: how the best size of a profile is found; see `fit_law`.
        tolerance: budgets that differ by less than this fraction are one.
        extrapolate: answer beyond 100 times the fitted budgets, and with a very wide interval.
        bootstrap, seed: resamples for the intervals of the surface; 0 leaves them out.
        level: coverage of every interval.

    Raises:
        ValueError: bad input.
        Refusal: the profiles do not identify N*, or the budget is too far from theirs; its `next_points` has
            the sizes to run at which budgets.
    """
    from hyperp.analysis.queries.isoflop import compute_optimal

    frame, source, told = _loss_table(runs, mapping, where, ("loss", "parameters", "tokens"))
    answer, law, surface, draws = compute_optimal(
        frame, budget, source, method, level, extrapolate, tolerance, bootstrap, seed
    )
    return Isoflop(answer.model_copy(update={"warnings": [*told, *answer.warnings]}), law, surface, draws)


def _loss_table(
    source: "Source",
    mapping: Mapping[str, str] | None,
    where: Mapping[str, Any] | None,
    wanted: Sequence[str],
    asked: Sequence[str | None] = (),
) -> "tuple[pd.DataFrame, dict[str, Any], list[str]]":
    """The rows for a loss law, which needs no learning rates, where they came from, and a line a guess.

    The columns `wanted` are guessed where the table lacks them; those in `asked` keep their names.
    """
    import pandas as pd

    from hyperp.analysis.table.read import RawTable, apply_map, read_table, table_of_frame
    from hyperp.analysis.table.spellings import guess_columns, read_lines
    from hyperp.analysis.table.statuses import known_status
    from hyperp.analysis.table.validate import Runs, filter_runs
    from hyperp.expression import columns_in

    if isinstance(source, Runs):
        table = RawTable(source.frame, source.path, source.sha256)
    else:
        table = table_of_frame(source) if isinstance(source, pd.DataFrame) else read_table(source)
    names, rows = dict(mapping or {}), where_as_text(where)
    taken = [*rows, *(c for c in asked if c), *(c for text in names.values() for c in columns_in(text))]
    guessed = guess_columns(table.frame, names, taken, wanted=wanted)
    names |= guessed.columns
    frame, told = apply_map(table.frame, names), read_lines(guessed.columns)
    if "status" in frame.columns:
        frame["status"], unknown = known_status(frame["status"])
        told += [unknown] if unknown else []
    frame = filter_runs(frame, rows)
    return (
        frame,
        {
            "mapping": names,
            "where": rows,
            "records": table.path,
            "records_sha256": table.sha256,
        },
        told,
    )
