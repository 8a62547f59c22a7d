"""Fit lr = exp(a) * product of covariate^b to the optima of the slices that can identify it."""

import datetime
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hyperp.analysis.errors import Refusal
from hyperp.analysis.law import Estimate, Law, SliceRecord
from hyperp.analysis.meta import MetaRegression, meta_regression
from hyperp.analysis.optimum import Optimum, find_optima
from hyperp.analysis.records import Runs, filter_runs
from hyperp.analysis.slices import Slice, next_point, short_label, split, strata, varying
from hyperp.analysis.tabulate import count_dropped, record, seed_spread
from hyperp.analysis.vocabulary import COVARIATES, LEVEL, WINDOW

LN2 = math.log(2.0)


@dataclass(frozen=True)
class Stratum:
    """Slices that differ only in the law's covariates; `usable` are bracketed, `problem` says why no fit."""

    members: list[int]
    usable: list[int]
    problem: str | None


def fit_law(
    runs: Runs,
    by: Sequence[str],
    where: Mapping[str, str] | None = None,
    fix: Mapping[str, float] | None = None,
    window: float = WINDOW,
    level: float = LEVEL,
    command: str = "",
) -> Law:
    """Fit a law to a table of runs.

    Args:
        runs: a checked table.
        by: covariates whose exponents are estimated.
        where: column values that select the rows to fit; the other slices stay in the law's file as excluded.
        fix: exponents held at a value, such as {"depth": -0.5}.
        window: half-width of the parabola's window in octaves.
        level: coverage of every interval.
        command: the command line to record.

    Raises:
        ValueError: an unknown covariate, or several groups of slices that could each carry the law.
        Refusal: no group of slices identifies the law; says which points to run.
    """
    where, fix = dict(where or {}), dict(fix or {})
    check_covariates(by, fix)
    inside = filter_runs(runs.frame, where)
    slices = split(inside)
    optima = find_optima(slices, window, level=level)
    groups = [assess(members, slices, optima, by) for members in strata(slices, [*by, *fix])]
    chosen = _choose(groups, slices, optima, by)
    used = [slices[i] for i in chosen.usable]
    used_optima = [optima[i] for i in chosen.usable]
    factors = {one.factor for one in used}
    return Law(
        context=used[0].context,
        covariates=list(by),
        **_estimates(_regress(used, used_optima, by, fix), by, level),
        fixed=fix,
        level=level,
        ranges={n: _range([s.covariates[n] for s in used]) for n in (*by, *fix)},
        held={n: used[0].covariates[n] for n in COVARIATES if n not in by and n not in fix},
        rate_factor=factors.pop() if len(factors) == 1 else None,
        window=window,
        seed_spread=seed_spread(used, used_optima),
        slices=_records(slices, optima, chosen) + _outside(runs, inside.index, where, window),
        rows=len(runs.frame),
        dropped=count_dropped(split(runs.frame, unique=False)),
        where=where,
        records=runs.path,
        records_sha256=runs.sha256,
        version=importlib.metadata.version("hyperp-scaling"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
    )


def check_covariates(by: Sequence[str], fix: Mapping[str, float]) -> None:
    """ValueError unless `by` and `fix` name different, known covariates."""
    if not by:
        raise ValueError(f"--by must name at least one of {', '.join(COVARIATES)}")
    for name in (*by, *fix):
        if name not in COVARIATES:
            raise ValueError(f"covariate must be one of {', '.join(COVARIATES)}, got {name!r}")
        if [*by, *fix].count(name) > 1:
            raise ValueError(f"covariate {name} is given twice in --by and --fix; once is allowed")
    for name, value in fix.items():
        if not math.isfinite(value):
            raise ValueError(f"--fix {name} must be a finite exponent, got {value}")


def design(slices: Sequence[Slice], by: Sequence[str]) -> np.ndarray:
    """(K, 1 + len(by)): ones, then the natural logs of the covariates."""
    return np.array([[1.0, *(math.log(one.covariates[name]) for name in by)] for one in slices])


def assess(
    members: list[int], slices: Sequence[Slice], optima: Sequence[Optimum], by: Sequence[str]
) -> Stratum:
    """Whether a group of slices identifies the exponents of `by`, and if not, why."""
    usable = [i for i in members if optima[i].state == "bracketed"]
    needed = len(by) + 2
    problem = None
    for name in by:
        values = sorted({slices[i].covariates[name] for i in members})
        if len(values) == 1:
            problem = problem or f"{name} has one value, {values[0]}"
    if problem is None and len(usable) < needed:
        size = f"{len(members)} slices" if len(members) > 1 else "one slice"
        problem = f"{size}, of which {len(usable)} bracketed, {needed} needed for {len(by) + 1} coefficients"
    if problem is None:
        X = design([slices[i] for i in usable], by)
        if np.linalg.matrix_rank(X - [0.0, *X[:, 1:].mean(axis=0)]) <= len(by):
            problem = (
                f"{' and '.join(by)} move together in the bracketed slices, or one of them does not move"
            )
    return Stratum(members, usable, problem)


def _choose(groups: list[Stratum], slices: list[Slice], optima: list[Optimum], by: Sequence[str]) -> Stratum:
    able = [group for group in groups if group.problem is None]
    if len(able) == 1:
        return able[0]
    if able:
        first = [slices[group.members[0]] for group in able]
        differ = [name for name in varying(first) if name not in by]
        choices = [
            " ".join(f"--where {n}={_quoted({**one.context, **one.covariates}[n])}" for n in differ)
            for one in first
        ]
        raise ValueError(
            f"{len(able)} groups of slices could carry the law; choose one: {' or '.join(choices)}"
        )
    best = max(
        groups,
        key=lambda g: (len({tuple(slices[i].covariates[n] for n in by) for i in g.members}), len(g.usable)),
    )
    raise Refusal(*_refusal(best, slices, optima, by, len(groups)))


def _quoted(value: object) -> str:
    text = str(value)
    return f"'{text}'" if " " in text else text


def _refusal(
    best: Stratum, slices: list[Slice], optima: list[Optimum], by: Sequence[str], groups: int
) -> tuple[str, list[dict[str, Any]]]:
    unbracketed = [i for i in best.members if optima[i].state != "bracketed"]
    names = varying(slices)
    why = "; ".join(f"{short_label(slices[i], names)}: {optima[i].reason}" for i in unbracketed)
    group = "the slices" if groups == 1 else f"the best of {groups} groups of slices"
    reason = f"the exponents of {', '.join(by)} are not identified: {group}: {best.problem}" + (
        f" ({why})" if why else ""
    )
    points = [next_point(slices[i], optima[i].next_rates) for i in unbracketed if optima[i].next_rates]
    if not unbracketed:
        points = _more_values(best, slices, by)
    return reason, points


def _more_values(best: Stratum, slices: list[Slice], by: Sequence[str]) -> list[dict[str, Any]]:
    last = slices[best.members[-1]]
    rates = sorted(set(last.lr.tolist()))
    points = []
    for name in by:
        values = {slices[i].covariates[name] for i in best.members}
        missing = max(len(by) + 2 - len(values), 1)
        for step in range(1, missing + 1):
            bigger = {**last.covariates, name: max(values) * 2**step}
            points.append({**last.context, **bigger, "lr": [float(f"{rate:.4g}") for rate in rates]})
    return points


def _regress(
    used: list[Slice], optima: list[Optimum], by: Sequence[str], fix: Mapping[str, float]
) -> MetaRegression:
    held = [sum(b * math.log(one.covariates[n]) for n, b in fix.items()) for one in used]
    y = np.array([(o.log2_lr or 0.0) * LN2 for o in optima]) - np.array(held)
    return meta_regression(y, np.array([o.se or 0.0 for o in optima]) * LN2, design(used, by))


def _estimates(regression: MetaRegression, by: Sequence[str], level: float) -> dict[str, Any]:
    low, high = regression.interval(level)
    estimates = [
        Estimate(value=float(v), se=float(s), low=float(lo), high=float(hi))
        for v, s, lo, hi in zip(regression.beta, regression.se, low, high, strict=True)
    ]
    cov = (regression.cov + regression.cov.T) / 2
    return {
        "a": estimates[0],
        "exponents": dict(zip(by, estimates[1:], strict=True)),
        "covariance": cov.tolist(),
        "df": regression.df,
        "tau": math.sqrt(regression.tau2),
        "slice_sd": math.sqrt(regression.unit_variance),
        "residual_sd": regression.residual_sd,
    }


def _outside(runs: Runs, inside: pd.Index, where: Mapping[str, str], window: float) -> list[SliceRecord]:
    """The slices that --where left out: not fitted, but kept for the pictures of transfer."""
    rest = runs.frame.drop(index=inside)
    reason = "not selected by --where " + " ".join(f"{k}={v}" for k, v in where.items())
    slices = split(rest, unique=False)
    optima = find_optima(slices, window)
    return [record(one, optimum, reason=reason) for one, optimum in zip(slices, optima, strict=True)]


def _records(slices: list[Slice], optima: list[Optimum], chosen: Stratum) -> list[SliceRecord]:
    home = slices[chosen.members[0]]
    records = []
    for index, (one, optimum) in enumerate(zip(slices, optima, strict=True)):
        reason = None
        if index not in chosen.members:
            differ = [
                n
                for n, v in {**one.context, **one.covariates}.items()
                if v != {**home.context, **home.covariates}[n]
            ]
            reason = f"another group: {short_label(one, differ)}"
        records.append(record(one, optimum, used=index in chosen.usable, reason=reason))
    return records


def _range(values: list[int]) -> tuple[int, int]:
    return min(values), max(values)
