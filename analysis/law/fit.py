"""Fit lr = exp(a) * product of covariate^b to the optima of the slices that identify it."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hyperp import __version__
from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.confounders import confounder_warnings
from hyperp.analysis.law.hierarchy.law import hierarchical_coefficients, hierarchical_parts
from hyperp.analysis.law.identify import Stratum, assess_stratum, choose_stratum, unidentified_refusal
from hyperp.analysis.law.parts import LawParts
from hyperp.analysis.law.records import BasinRecord, OtherMethod, SliceRecord, finite_exp
from hyperp.analysis.law.regression import Sample, coefficients, regress, regression_parts
from hyperp.analysis.law.request import FitRequest, check_request
from hyperp.analysis.law.schema import Coefficients, Law
from hyperp.analysis.law.seeds import exponents_by_seed
from hyperp.analysis.law.slice_records import count_dropped, seed_spread, slice_record
from hyperp.analysis.law.zeros import zero_warnings
from hyperp.analysis.optima.estimation import MethodResult
from hyperp.analysis.optima.grid import grid_step
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.slices import Number, Slice, cut_slices, strata
from hyperp.analysis.table.trainer import trainer_of
from hyperp.analysis.table.validate import Runs, filter_runs
from hyperp.analysis.vocabulary import METHODS
from hyperp.run_table import COVARIATES

BESIDE_SLICES = 150  # up to which the other methods are fitted too; they take longer than the law itself


def fit_request(runs: Runs, request: FitRequest, command: str = "") -> Law:
    """Fit a law to a table of runs; `command` is the command line to record in it.

    Raises:
        ValueError: the request makes no sense of the table, or several groups of slices could carry the law.
        Refusal: no group of slices identifies the law; says which points to run.
    """
    if not request.by:
        raise ValueError(
            f"{argument('by')} must name at least one of {', '.join(COVARIATES)}, or another numeric column"
        )
    check_request(request, runs.frame, runs.mapping)
    runs, by = runs.with_sizes(request.extra), request.by
    inside = filter_runs(runs.frame, request.where)
    slices, found = _find_optima(inside, request)
    groups = [
        assess_stratum(g, slices, found.optima, by, request.hierarchical)
        for g in strata(slices, [*by, *request.fix])
    ]
    chosen = choose_stratum(groups, slices, by)
    if chosen.problem is not None:
        raise unidentified_refusal(chosen, slices, found.optima, by, len(groups))

    used = [slices[i] for i in chosen.usable]
    for name in request.fix:
        if any(one.covariates[name] == 0 for one in used):
            raise ValueError(f"{argument('fix')} {name} must be above 0 in every slice, got 0")
    basin = _law_basin(request, slices, found, chosen)
    parts = fit_parts(request, slices, found, chosen.usable, basin)
    own = parts.own
    members = [slices[i] for i in chosen.members]
    others = (
        [_least_squares(request, slices, found, chosen.usable)]
        if request.given
        else _other_methods(request, members, used)
    )
    factors = {one.factor for one in used}
    varied = (*by, *request.fix)
    return Law(
        a=own.a,
        exponents=own.exponents,
        covariance=own.covariance,
        df=own.df,
        tau=own.tau,
        slice_sd=own.slice_sd,
        residual_sd=own.residual_sd,
        tau_interval=own.tau_interval,
        bends=own.bends,
        posterior=own.posterior,
        space=request.space,
        method="given" if request.given else request.method,
        over=list(request.over),
        context=used[0].context,
        trainer=trainer_of(inside),
        covariates=list(by),
        also=dict(parts.also),
        fixed=dict(request.fix),
        fixed_tests=parts.fixed_tests,
        curvature_tests=parts.curvature_tests,
        leave_one_out=parts.leave_one_out,
        beside=others,
        by_seed=exponents_by_seed(request, slices, found, chosen.usable, own.tau),
        priors=parts.priors,
        without_priors=parts.without_priors,
        tau_sd=request.tau_sd if own.posterior is not None else None,
        bend_sd=request.bend_sd if own.posterior is not None else None,
        warnings=[
            *runs.notes,
            *found.notes,
            *zero_warnings(slices, inside, varied, request.over),
            *confounder_warnings(used, inside, by, runs.mapping),
            *parts.warnings,
            *_other_method_warnings(request, others, parts),
            *([] if others else [f"no other method beside a law of more than {BESIDE_SLICES} slices"]),
        ],
        basin=basin,
        rate_sd=parts.rate_sd,
        level=request.level,
        reach=request.reach,
        ranges={name: _range([one.covariates[name] for one in used]) for name in varied},
        held={name: value for name, value in used[0].covariates.items() if name not in varied},
        rate_factor=factors.pop() if len(factors) == 1 else None,
        window=request.window,
        seed_spread=seed_spread(used, [found.optima[i] for i in chosen.usable]),
        slices=_slice_records(found.slices or slices, found.optima, chosen, parts.shares)
        + _unselected_records(runs.frame, inside.index, request),
        rows=len(runs.frame),
        dropped=_count_all_dropped(runs.frame, request, slices, found),
        where=dict(request.where),
        mapping=dict(runs.mapping),
        records=runs.path,
        records_sha256=runs.sha256,
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
    )


def _count_all_dropped(
    frame: pd.DataFrame, request: FitRequest, slices: Sequence[Slice], found: MethodResult
) -> dict[str, int]:
    """The rows of the table that no slice has, by status, with the runs that the method leaves out."""
    if request.given:
        return {}
    before = count_dropped(slices)
    more = {name: n - before.get(name, 0) for name, n in count_dropped(found.slices or slices).items()}
    whole = count_dropped(_slices(frame, request, unique=False))
    total = {name: whole.get(name, 0) + more.get(name, 0) for name in sorted({*whole, *more})}
    return {name: count for name, count in total.items() if count}


def fit_parts(
    request: FitRequest,
    slices: Sequence[Slice],
    found: MethodResult,
    usable: Sequence[int],
    basin: BasinRecord | None,
) -> LawParts:
    """The law of the slices in `usable` by the requested model; see `hierarchical_parts`."""
    fit = hierarchical_parts if request.hierarchical else regression_parts
    return fit(request, slices, found, usable, basin)


def _slices(frame: pd.DataFrame, request: FitRequest, unique: bool = True) -> list[Slice]:
    return cut_slices(frame, unique, extra=request.extra, over=request.over)


def _find_optima(
    frame: pd.DataFrame, request: FitRequest, unique: bool = True
) -> tuple[list[Slice], MethodResult]:
    if request.given:
        return _given_optima(frame, request)
    slices = _slices(frame, request, unique)
    found = estimate_optima(request.method, slices, request.options)
    for name in request.over[1:]:
        if slices and all(len(np.unique(one.tuned[name])) < 2 for one in slices):
            tuned = argument("over", name, "--tuned")
            raise ValueError(f"{tuned}: it has one value in every slice, so it was not tuned")
    return slices, found


def _given_optima(frame: pd.DataFrame, request: FitRequest) -> tuple[list[Slice], MethodResult]:
    """Each row as a slice without runs whose optimum is the row's rate."""
    frame = frame.assign(loss=frame["loss"] if "loss" in frame.columns else np.nan)
    slices, optima = [], []
    errors = [None] * len(frame) if request.se is None else _given_errors(frame, request.se)
    step, notes = (None, []) if request.se is not None else grid_step(frame["lr"].to_numpy(dtype=float))
    for index in range(len(frame)):
        row = frame.iloc[index : index + 1]
        (one,) = _slices(row, request)
        loss = float(row["loss"].iloc[0])
        also = {n: math.log2(row[n].iloc[0]) for n in request.over[1:]}
        nothing = {"lr": np.empty(0), "seed": np.empty(0, dtype=int), "loss": np.empty(0), "tuned": {}}
        slices.append(replace(one, **nothing, dropped={}))
        rate, se = math.log2(row["lr"].iloc[0]), errors[index]
        half = 0.0 if step is None else step / 2
        low = high = None
        if se is not None or step is not None:
            reach = half if se is None else t_quantile(10**6, request.level) * se
            low, high = 2.0 ** (rate - reach), 2.0 ** (rate + reach)
        optima.append(
            Optimum(
                "bracketed",
                None,
                log2_lr=rate,
                loss=loss if math.isfinite(loss) else None,
                se=half / math.sqrt(3) if se is None and step is not None else se,
                low=low,
                high=high,
                rounding=None if step is None else half,
                also=also,
            )
        )
    return slices, MethodResult(optima, [None] * len(optima), notes=notes)


def _given_errors(frame: pd.DataFrame, column: str) -> list[float]:
    """Standard errors of ln lr from a column, in octaves."""
    values = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        got = frame[column].iloc[bad[0]]
        raise ValueError(f"{column} must be a positive standard error of ln lr in every row, got {got!r}")
    return (values / math.log(2)).tolist()


def _law_basin(
    request: FitRequest, slices: Sequence[Slice], found: MethodResult, chosen: Stratum
) -> BasinRecord | None:
    """The basin that the slices share; that of parabolas where the method itself fits no shape."""
    one = found.basins[chosen.usable[0]]
    if not request.given and one is None and request.over == ("lr",):
        members = [slices[i] for i in chosen.members]
        one = estimate_optima("two-stage", members, request.options).basins[0]
    return None if one is None else BasinRecord.of(one)


def _other_methods(request: FitRequest, members: Sequence[Slice], used: Sequence[Slice]) -> list[OtherMethod]:
    """The law that each other method gives of the same slices, and its rate in the middle of those used."""
    if len(members) > BESIDE_SLICES:
        return []
    found = []
    for name in METHODS:
        if name == request.method:
            continue
        if name == "two-stage" and len(request.over) > 1:
            found.append(_no_law(name, 0, "tunes lr alone"))
            continue
        asked = replace(request, method=name, prior={})
        try:
            result = estimate_optima(name, members, asked.options)
        except Refusal as refusal:
            found.append(_no_law(name, 0, refusal.reason))
            continue
        whole = list(range(len(members)))
        group = assess_stratum(whole, members, result.optima, request.by, asked.hierarchical)
        if group.problem is not None:
            found.append(_no_law(name, len(group.usable), group.problem))
            continue
        found.append(_beside(asked, members, result, group.usable, used))
    return found


def _least_squares(
    request: FitRequest, slices: Sequence[Slice], found: MethodResult, usable: Sequence[int]
) -> OtherMethod:
    """Ordinary least squares of given optima, as if they were exact."""
    exact = [replace(o, se=None, rounding=None) for o in found.optima]
    asked = replace(request, method="argmin", prior={})
    used = [slices[i] for i in usable]
    line = _beside(asked, slices, MethodResult(exact, found.basins), usable, used)
    return line.model_copy(update={"method": "least-squares"})


def _beside(
    asked: FitRequest,
    members: Sequence[Slice],
    result: MethodResult,
    usable: Sequence[int],
    used: Sequence[Slice],
) -> OtherMethod:
    """The law of another method, with its values in the middle of the slices that the law itself uses."""
    parts = other_coefficients(asked, members, result, usable)
    varied = (*asked.by, *asked.fix)
    middle = {n: math.fsum(math.log(s.covariates[n]) for s in used) / len(used) for n in varied}
    fixed = sum(b * middle[n] for n, b in asked.fix.items())

    def at_middle(found: Coefficients) -> float:
        return finite_exp(found.a.value + sum(e.value * middle[n] for n, e in found.exponents.items()))

    own = parts["lr"]
    return OtherMethod(
        method=asked.method,
        slices=len(usable),
        a=own.a.value,
        exponents={n: e.value for n, e in own.exponents.items()},
        intervals={n: (e.low, e.high) for n, e in own.exponents.items()},
        lr=at_middle(own) * math.exp(fixed),
        also={n: at_middle(found) for n, found in parts.items() if n != "lr"},
        problem=None,
    )


def other_coefficients(
    asked: FitRequest, members: Sequence[Slice], result: MethodResult, usable: Sequence[int]
) -> dict[str, Coefficients]:
    """The coefficients for the rate and what was tuned beside it, without the tests of a whole law."""
    if asked.hierarchical:
        return hierarchical_coefficients(asked, members, result, usable)
    sample = Sample.of(members, result, usable, asked)
    also_by = asked.also_by or asked.by
    second = sample.for_tuned_with_lr(also_by)
    own = {"lr": coefficients(regress(sample), asked.by, asked.level)}
    return own | {n: coefficients(regress(second, n), also_by, asked.level) for n in asked.over[1:]}


def _no_law(method: str, slices: int, problem: str) -> OtherMethod:
    return OtherMethod(method=method, slices=slices, a=None, exponents={}, lr=None, problem=problem)


def _other_method_warnings(request: FitRequest, others: Sequence[OtherMethod], parts: LawParts) -> list[str]:
    """What another method puts outside the law's own intervals."""
    warnings = []
    for other in others:
        if other.problem is not None and (other.slices or other.method != "two-stage"):
            warnings.append(f"{other.method} gives no law of these slices: {other.problem}")
        for name, own in parts.own.exponents.items():
            value = other.exponents.get(name)
            if value is not None and not own.low <= value <= own.high:
                warnings.append(
                    f"{other.method} puts the exponent of {name} at {value:.3f}, "
                    f"outside the interval {own.low:.3f} to {own.high:.3f} of {request.method}"
                )
        for response, (low, high) in parts.middle.items():
            value = other.lr if response == "lr" else other.also.get(response)
            if value is not None and not low <= value <= high:
                warnings.append(
                    f"{other.method} puts {response} in the middle of the slices at {value:.4g}, "
                    f"outside the interval {low:.4g} to {high:.4g} of {request.method}"
                )
    return warnings


def _slice_records(
    slices: Sequence[Slice], optima: Sequence[Optimum], chosen: Stratum, shares: Sequence[float]
) -> list[SliceRecord]:
    home = slices[chosen.members[0]]
    members, usable = set(chosen.members), set(chosen.usable)
    share = dict(zip(chosen.usable, shares, strict=False))
    records = []
    for index, (one, optimum) in enumerate(zip(slices, optima, strict=True)):
        reason = None
        if index not in members:
            values = {**home.context, **home.covariates}
            differ = [n for n, v in {**one.context, **one.covariates}.items() if v != values[n]]
            reason = f"another group: {one.label(differ)}"
        records.append(
            slice_record(one, optimum, used=index in usable, reason=reason, share=share.get(index))
        )
    return records


def _unselected_records(frame: pd.DataFrame, inside: pd.Index, request: FitRequest) -> list[SliceRecord]:
    """The slices that `where` leaves out: no part of the fit, but kept for the plots of transfer."""
    rest = frame.drop(index=inside)
    if rest.empty:
        return []
    reason = "not in the selection " + " ".join(f"{k}={v}" for k, v in request.where.items())
    try:
        slices, found = _find_optima(rest, request, unique=False)
    except (ValueError, Refusal):  # what is not asked about must not stop the fit
        return []
    return [
        slice_record(one, optimum, reason=reason)
        for one, optimum in zip(found.slices or slices, found.optima, strict=True)
    ]


def _range(values: Sequence[Number]) -> tuple[Number, Number]:
    return min(values), max(values)
