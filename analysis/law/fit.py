"""Fit lr = exp(a) * product of covariate^b to the optima of the slices that identify it."""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hyperp import __version__
from hyperp.analysis.errors import argument
from hyperp.analysis.law.confounders import confounder_warnings
from hyperp.analysis.law.identify import Stratum, assess_stratum, choose_stratum, unidentified_refusal
from hyperp.analysis.law.regression import (
    Sample,
    coefficients,
    curvature_tests,
    fixed_tests,
    leave_one_out,
    outliers,
    rate_sd,
    regress,
)
from hyperp.analysis.law.request import FitRequest, check_request
from hyperp.analysis.law.schema import BasinRecord, Law, OtherMethod, SliceRecord
from hyperp.analysis.law.seeds import exponents_by_seed
from hyperp.analysis.law.slice_records import count_dropped, seed_spread, slice_record
from hyperp.analysis.law.zeros import zero_warnings
from hyperp.analysis.optima.estimation import MethodResult
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.random_effects import MetaRegression, t_quantile
from hyperp.analysis.table.slices import Number, Slice, cut_slices, strata
from hyperp.analysis.table.validate import Runs, filter_runs
from hyperp.analysis.vocabulary import METHODS
from hyperp.run_table import COVARIATES

Fits = Mapping[str, tuple[Sample, MetaRegression]]  # by what was tuned, lr first


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
    groups = [assess_stratum(g, slices, found.optima, by) for g in strata(slices, [*by, *request.fix])]
    chosen = choose_stratum(groups, slices, by)
    if chosen.problem is not None:
        raise unidentified_refusal(chosen, slices, found.optima, by, len(groups))

    used = [slices[i] for i in chosen.usable]
    sample = Sample.of(slices, found, chosen.usable, request)
    regression = regress(sample)
    also_by = request.also_by or by
    second = sample.for_tuned_with_lr(also_by)
    also = {name: (second, regress(second, name)) for name in request.over[1:]}
    own = coefficients(regression, by, request.level)
    basin = _law_basin(request, slices, found, chosen)
    others = [] if request.given else _other_methods(request, [slices[i] for i in chosen.members], used)
    fits: Fits = {"lr": (sample, regression), **also}
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
        space=request.space,
        method="given" if request.given else request.method,
        over=list(request.over),
        context=used[0].context,
        covariates=list(by),
        also={name: coefficients(fit, also_by, request.level) for name, (_, fit) in also.items()},
        fixed=dict(request.fix),
        fixed_tests=fixed_tests(sample, request.level),
        curvature_tests=curvature_tests(sample),
        leave_one_out=leave_one_out(sample, regression, basin, also),
        beside=others,
        by_seed=exponents_by_seed(request, used),
        warnings=[
            *runs.notes,
            *found.notes,
            *zero_warnings(slices, inside, varied, request.over),
            *confounder_warnings(used, inside, by, runs.mapping),
            *_law_warnings(request, others, fits),
        ],
        basin=basin,
        rate_sd=rate_sd(sample, regression),
        level=request.level,
        reach=request.reach,
        ranges={name: _range([one.covariates[name] for one in used]) for name in varied},
        held={name: value for name, value in used[0].covariates.items() if name not in varied},
        rate_factor=factors.pop() if len(factors) == 1 else None,
        window=request.window,
        seed_spread=seed_spread(used, sample.optima),
        slices=_slice_records(slices, found.optima, chosen)
        + _unselected_records(runs.frame, inside.index, request),
        rows=len(runs.frame),
        dropped={} if request.given else count_dropped(_slices(runs.frame, request, unique=False)),
        where=dict(request.where),
        mapping=dict(runs.mapping),
        records=runs.path,
        records_sha256=runs.sha256,
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
    )


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
    for index in range(len(frame)):
        row = frame.iloc[index : index + 1]
        (one,) = _slices(row, request)
        loss = float(row["loss"].iloc[0])
        also = {n: math.log2(row[n].iloc[0]) for n in request.over[1:]}
        nothing = {"lr": np.empty(0), "seed": np.empty(0, dtype=int), "loss": np.empty(0), "tuned": {}}
        slices.append(replace(one, **nothing, dropped={}))
        rate = math.log2(row["lr"].iloc[0])
        known = loss if math.isfinite(loss) else None
        optima.append(Optimum("bracketed", None, log2_lr=rate, loss=known, also=also))
    return slices, MethodResult(optima, [None] * len(optima))


def _law_basin(
    request: FitRequest, slices: Sequence[Slice], found: MethodResult, chosen: Stratum
) -> BasinRecord | None:
    """The basin that the slices share; that of parabolas where the method itself fits no shape."""
    one = found.basins[chosen.usable[0]]
    if not request.given and one is None and request.over == ("lr",):
        members = [slices[i] for i in chosen.members]
        one = estimate_optima("two-stage", members, request.options).basins[0]
    return None if one is None else BasinRecord(powers=one.powers, coef=one.coef, bend=one.bend)


def _other_methods(request: FitRequest, members: Sequence[Slice], used: Sequence[Slice]) -> list[OtherMethod]:
    """The law that each other method gives of the same slices, and its rate in the middle of those used."""
    varied = (*request.by, *request.fix)
    middle = {n: math.fsum(math.log(s.covariates[n]) for s in used) / len(used) for n in varied}
    found = []
    for name in METHODS:
        if name == request.method:
            continue
        if name == "two-stage" and len(request.over) > 1:
            found.append(_no_law(name, 0, "tunes lr alone"))
            continue
        result = estimate_optima(name, members, request.options)
        group = assess_stratum(list(range(len(members))), members, result.optima, request.by)
        if group.problem is not None:
            found.append(_no_law(name, len(group.usable), group.problem))
            continue
        sample = Sample.of(members, result, group.usable, request)
        beta = regress(sample).beta
        fixed = sum(b * middle[n] for n, b in request.fix.items())
        also_by = request.also_by or request.by
        second = sample.for_tuned_with_lr(also_by)
        at = [1.0, *(middle[n] for n in also_by)]
        found.append(
            OtherMethod(
                method=name,
                slices=len(group.usable),
                a=float(beta[0]),
                exponents=dict(zip(request.by, beta[1:].tolist(), strict=True)),
                lr=math.exp(float(beta @ [1.0, *(middle[n] for n in request.by)]) + fixed),
                also={n: math.exp(float(regress(second, n).beta @ at)) for n in request.over[1:]},
                problem=None,
            )
        )
    return found


def _no_law(method: str, slices: int, problem: str) -> OtherMethod:
    return OtherMethod(method=method, slices=slices, a=None, exponents={}, lr=None, problem=problem)


def _law_warnings(request: FitRequest, others: Sequence[OtherMethod], fits: Fits) -> list[str]:
    """Slices far from the law, and what another method puts outside the law's own intervals."""
    warnings = [line for name, (sample, _) in fits.items() for line in outliers(sample, name)]
    low, high = fits["lr"][1].interval(request.level)
    for other in others:
        if other.problem is not None and (other.slices or other.method != "two-stage"):
            warnings.append(f"{other.method} gives no law of these slices: {other.problem}")
        for j, name in enumerate(request.by, start=1):
            value = other.exponents.get(name)
            if value is not None and not low[j] <= value <= high[j]:
                warnings.append(
                    f"{other.method} puts the exponent of {name} at {value:.3f}, "
                    f"outside the interval {low[j]:.3f} to {high[j]:.3f} of {request.method}"
                )
        for response, (sample, fit) in fits.items():
            value = other.lr if response == "lr" else other.also.get(response)
            ends = _middle_interval(sample, fit, response, request.level)
            if value is not None and not ends[0] <= value <= ends[1]:
                warnings.append(
                    f"{other.method} puts {response} in the middle of the slices at {value:.4g}, "
                    f"outside the interval {ends[0]:.4g} to {ends[1]:.4g} of {request.method}"
                )
    return warnings


def _middle_interval(sample: Sample, fit: MetaRegression, response: str, level: float) -> tuple[float, float]:
    """Confidence limits of the law itself at the geometric mean of its slices."""
    x = sample.X.mean(axis=0)
    centre = float(x @ fit.beta + sample.fixed_part(response).mean())
    half = t_quantile(fit.df, level) * math.sqrt(max(float(x @ fit.cov @ x), 0.0)) + 1e-9
    return math.exp(centre - half), math.exp(centre + half)


def _slice_records(slices: Sequence[Slice], optima: Sequence[Optimum], chosen: Stratum) -> list[SliceRecord]:
    home = slices[chosen.members[0]]
    members, usable = set(chosen.members), set(chosen.usable)
    records = []
    for index, (one, optimum) in enumerate(zip(slices, optima, strict=True)):
        reason = None
        if index not in members:
            values = {**home.context, **home.covariates}
            differ = [n for n, v in {**one.context, **one.covariates}.items() if v != values[n]]
            reason = f"another group: {one.label(differ)}"
        records.append(slice_record(one, optimum, used=index in usable, reason=reason))
    return records


def _unselected_records(frame: pd.DataFrame, inside: pd.Index, request: FitRequest) -> list[SliceRecord]:
    """The slices that `where` leaves out: no part of the fit, but kept for the plots of transfer."""
    rest = frame.drop(index=inside)
    if rest.empty:
        return []
    reason = "not in the selection " + " ".join(f"{k}={v}" for k, v in request.where.items())
    slices, found = _find_optima(rest, request, unique=False)
    return [
        slice_record(one, optimum, reason=reason) for one, optimum in zip(slices, found.optima, strict=True)
    ]


def _range(values: Sequence[Number]) -> tuple[Number, Number]:
    return min(values), max(values)
