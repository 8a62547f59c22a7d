"""Fit lr = exp(a) * product of covariate^b to the optima of the slices that can identify it."""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hyperp import __version__
from hyperp.analysis.law.identify import Stratum, assess, choose
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
from hyperp.analysis.law.schema import BasinRecord, Beside, Coefficients, Law, SliceRecord
from hyperp.analysis.law.seeds import by_seed
from hyperp.analysis.law.slice_records import count_dropped, record, seed_spread
from hyperp.analysis.optima.estimation import BasinEstimate, MethodResult
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.random_effects import MetaRegression, t_quantile
from hyperp.analysis.table.slices import Slice, short_label, split, strata
from hyperp.analysis.table.validate import Runs, check_frame, filter_runs
from hyperp.analysis.vocabulary import LEVEL, METHODS, WINDOW
from hyperp.run_table import COVARIATES


def fit_law(
    runs: Runs,
    by: Sequence[str],
    where: Mapping[str, str] | None = None,
    fix: Mapping[str, float] | None = None,
    window: float = WINDOW,
    level: float = LEVEL,
    command: str = "",
    mapping: Mapping[str, str] | None = None,
    **more: Any,
) -> Law:
    """Fit a law to a table of runs.

    Args:
        runs: a checked table.
        by, where, fix, window, level: see `FitRequest`.
        command: the command line to record.
        mapping: how foreign columns were named, to record.
        more: the other fields of `FitRequest`.

    Raises:
        ValueError: an unknown covariate, or several groups of slices that could each carry the law.
        Refusal: no group of slices identifies the law; says which points to run.
    """
    request = FitRequest(tuple(by), dict(fix or {}), dict(where or {}), window=window, level=level, **more)
    if not request.by:
        raise ValueError(f"--by must name at least one of {', '.join(COVARIATES)}, or another numeric column")
    check_request(request, runs.frame)
    frame = check_frame(runs.frame, request.extra) if request.extra else runs.frame
    inside = filter_runs(frame, request.where)
    slices, found = _optima(inside, request)
    groups = [assess(g, slices, found.optima, by) for g in strata(slices, [*by, *request.fix])]
    chosen = choose(groups, slices, found.optima, by)
    records = _records(slices, found.optima, chosen) + _outside(frame, inside.index, request)
    return Law(
        **_fitted(request, slices, found, chosen),
        window=window,
        where=dict(request.where),
        slices=records,
        rows=len(frame),
        dropped={} if request.given else count_dropped(_slices(frame, request, unique=False)),
        mapping=dict(mapping or {}),
        records=runs.path,
        records_sha256=runs.sha256,
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
    )


def _fitted(request: FitRequest, slices: list[Slice], found: MethodResult, chosen: Stratum) -> dict[str, Any]:
    """The fields of the law that come from the slices used."""
    used = [slices[i] for i in chosen.usable]
    sample = Sample(
        used,
        [found.optima[i] for i in chosen.usable],
        request.by,
        request.fix,
        found.by_runs,
        request.space,
    )
    regression = regress(sample)
    basin = _basin(request, slices, found, chosen)
    also_by = request.also_by or request.by
    second = replace(sample, by=also_by, fix={}, space="log")
    also = {n: regress(second, n) for n in request.over[1:]}
    factors = {one.factor for one in used}
    own = coefficients(regression, request.by, request.level)
    fields = {
        "method": "given" if request.given else request.method,
        "over": list(request.over),
        "space": request.space,
        "context": used[0].context,
        "covariates": list(request.by),
        **own,
        "also": {n: Coefficients(**coefficients(r, also_by, request.level)) for n, r in also.items()},
        "fixed": dict(request.fix),
        "fixed_tests": fixed_tests(sample, request.level),
        "curvature_tests": curvature_tests(sample),
        "by_seed": by_seed(request, used),
        "leave_one_out": leave_one_out(sample, regression, basin, {n: (second, r) for n, r in also.items()}),
        "basin": basin,
        "rate_sd": rate_sd(sample, regression),
        "level": request.level,
        "reach": request.reach,
        "ranges": {n: _range([s.covariates[n] for s in used]) for n in (*request.by, *request.fix)},
        "held": {n: v for n, v in used[0].covariates.items() if n not in (*request.by, *request.fix)},
        "rate_factor": factors.pop() if len(factors) == 1 else None,
        "seed_spread": seed_spread(used, sample.optima),
    }
    beside = [] if request.given else _beside(request, [slices[i] for i in chosen.members], used)
    fits = {"lr": (sample, regression), **{n: (second, r) for n, r in also.items()}}
    doubts = [line for n, (one, _) in fits.items() for line in outliers(one, n)]
    doubts += _disagreements(request, beside, fits)
    return {**fields, "beside": beside, "warnings": [*found.notes, *doubts]}


def _basin(
    request: FitRequest, slices: list[Slice], found: MethodResult, chosen: Stratum
) -> BasinRecord | None:
    """The shape of the basin; parabolas give one to methods that fit no shape."""
    basins: list[BasinEstimate | None] = [found.basins[i] for i in chosen.usable]
    if not request.given and basins[0] is None and request.over == ("lr",):
        members = [slices[i] for i in chosen.members]
        basins = estimate_optima("two-stage", members, request.options).basins
    one = basins[0]
    return None if one is None else BasinRecord(powers=one.powers, coef=one.coef, bend=one.bend)


def _beside(request: FitRequest, members: list[Slice], used: list[Slice]) -> list[Beside]:
    """What the other methods make of the slices of the chosen group, at the middle of those used."""
    middle = {n: math.fsum(math.log(s.covariates[n]) for s in used) / len(used) for n in used[0].covariates}
    held = sum(b * middle[n] for n, b in request.fix.items())
    rows = []
    for name in METHODS:
        if name == request.method:
            continue
        if name == "two-stage" and len(request.over) > 1:
            rows.append(
                Beside(method=name, slices=0, a=None, exponents={}, lr=None, problem="tunes lr alone")
            )
            continue
        found = estimate_optima(name, members, request.options)
        group = assess(list(range(len(members))), members, found.optima, request.by)
        row: dict[str, Any] = {"method": name, "slices": len(group.usable)}
        if group.problem is not None:
            rows.append(Beside(**row, a=None, exponents={}, lr=None, problem=group.problem))
            continue
        kept = [members[i] for i in group.usable], [found.optima[i] for i in group.usable]
        sample = Sample(*kept, request.by, request.fix, found.by_runs, request.space)
        beta = regress(sample).beta
        row["exponents"] = dict(zip(request.by, beta[1:].tolist(), strict=True))
        rate = math.exp(float(beta @ [1.0, *(middle[n] for n in request.by)]) + held)
        by = request.also_by or request.by
        second = replace(sample, by=by, fix={}, space="log")
        x = [1.0, *(middle[n] for n in by)]
        also = {n: math.exp(float(regress(second, n).beta @ x)) for n in request.over[1:]}
        rows.append(Beside(**row, a=float(beta[0]), lr=rate, also=also, problem=None))
    return rows


def _disagreements(
    request: FitRequest, beside: list[Beside], fits: Mapping[str, tuple[Sample, MetaRegression]]
) -> list[str]:
    """Exponents and values in the middle that another method puts outside the law's own intervals."""
    low, high = fits["lr"][1].interval(request.level)
    warnings = []
    for other in beside:
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
    centre = float(x @ fit.beta + sample.held(response).mean())
    half = t_quantile(fit.df, level) * math.sqrt(max(float(x @ fit.cov @ x), 0.0)) + 1e-9
    return math.exp(centre - half), math.exp(centre + half)


def _slices(frame: pd.DataFrame, request: FitRequest, unique: bool = True) -> list[Slice]:
    return split(frame, unique, extra=request.extra, over=request.over)


def _optima(
    frame: pd.DataFrame, request: FitRequest, unique: bool = True
) -> tuple[list[Slice], MethodResult]:
    if request.given:
        return _given(frame, request)
    slices = _slices(frame, request, unique)
    found = estimate_optima(request.method, slices, request.options)
    for name in request.over[1:]:
        if slices and all(len(np.unique(one.tuned[name])) < 2 for one in slices):
            raise ValueError(f"--tuned {name}: it has one value in every slice, so it was not tuned")
    return slices, found


def _given(frame: pd.DataFrame, request: FitRequest) -> tuple[list[Slice], MethodResult]:
    """Each row as a slice whose optimum is its rate."""
    frame = frame.assign(loss=frame["loss"] if "loss" in frame.columns else np.nan)
    slices, optima = [], []
    for index in range(len(frame)):
        row = frame.iloc[index : index + 1]
        (one,) = split(row, extra=request.extra, over=request.over)
        loss = float(row["loss"].iloc[0])
        also = {n: math.log2(row[n].iloc[0]) for n in request.over[1:]}
        slices.append(replace(one, lr=np.empty(0), seed=np.empty(0, dtype=int), loss=np.empty(0), dropped={}))
        rate = math.log2(row["lr"].iloc[0])
        known = loss if math.isfinite(loss) else None
        optima.append(Optimum("bracketed", None, log2_lr=rate, loss=known, also=also))
    return slices, MethodResult(optima, [None] * len(optima))


def _outside(frame: pd.DataFrame, inside: pd.Index, request: FitRequest) -> list[SliceRecord]:
    """The slices that --where left out: not fitted, but kept for the pictures of transfer."""
    rest = frame.drop(index=inside)
    if rest.empty:
        return []
    reason = "not selected by --where " + " ".join(f"{k}={v}" for k, v in request.where.items())
    slices, found = _optima(rest, request, unique=False)
    return [record(one, optimum, reason=reason) for one, optimum in zip(slices, found.optima, strict=True)]


def _records(slices: list[Slice], optima: list[Optimum], chosen: Stratum) -> list[SliceRecord]:
    home = slices[chosen.members[0]]
    members, usable = set(chosen.members), set(chosen.usable)
    records = []
    for index, (one, optimum) in enumerate(zip(slices, optima, strict=True)):
        reason = None
        if index not in members:
            values = {**home.context, **home.covariates}
            differ = [n for n, v in {**one.context, **one.covariates}.items() if v != values[n]]
            reason = f"another group: {short_label(one, differ)}"
        records.append(record(one, optimum, used=index in usable, reason=reason))
    return records


def _range(values: list) -> tuple:
    return min(values), max(values)
