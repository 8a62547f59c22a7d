"""The Python API of loss laws: what `hyperp.analysis` exports beside `api`, for tables without rates too."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperp.analysis.arguments import held_values, require_dict, where_as_text
from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.results import FittedLoss, MeasuredLeverage
from hyperp.analysis.vocabulary import HUBER_DELTA, LEVEL

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
    from hyperp.analysis.loss.points import loss_points
    from hyperp.analysis.loss.schema import loss_law_record

    frame, source = _loss_table(runs, mapping, where)
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
    warnings = [*points.warnings, *exponent_warnings(fit, draws)]
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
    frame, source = _loss_table(runs, mapping, where)
    held = held_values("pin", pin, "{'E': 1.6}")
    found, series = compute_leverage(frame, str(value), column, held, bootstrap, seed, cluster, level)
    found = found.model_copy(update={name: source[name] for name in ("records", "records_sha256")})
    return MeasuredLeverage(found, series)


def _loss_table(
    source: "Source", mapping: Mapping[str, str] | None, where: Mapping[str, Any] | None
) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """The rows for a loss law, which needs no learning rates, and where they came from."""
    import pandas as pd

    from hyperp.analysis.table.read import RawTable, apply_map, read_table, table_of_frame
    from hyperp.analysis.table.validate import Runs, filter_runs

    if isinstance(source, Runs):
        table = RawTable(source.frame, source.path, source.sha256)
    else:
        table = table_of_frame(source) if isinstance(source, pd.DataFrame) else read_table(source)
    names, rows = dict(mapping or {}), where_as_text(where)
    frame = filter_runs(apply_map(table.frame, names), rows)
    return frame, {
        "mapping": names,
        "where": rows,
        "records": table.path,
        "records_sha256": table.sha256,
    }
