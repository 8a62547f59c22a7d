"""A law of the hierarchical model, as law.json holds it, with what tests it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtr

from hyperp.analysis.law.hierarchy.estimate import FLAT_PART, Hierarchy, LawPriors, fit_hierarchy
from hyperp.analysis.law.hierarchy.posterior import mixture_quantiles
from hyperp.analysis.law.hierarchy.record import PosteriorRecord, PriorRecord, bend_records
from hyperp.analysis.law.parts import LawParts
from hyperp.analysis.law.records import BasinRecord, Estimate, FixedTest, LeftOut, finite_exp
from hyperp.analysis.law.regression import why_collinear, why_constant
from hyperp.analysis.law.request import FitRequest
from hyperp.analysis.law.schema import Coefficients
from hyperp.analysis.optima.estimation import MethodResult
from hyperp.analysis.optima.likelihood.tables import LikelihoodTables, tables_of_optima
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.table.slices import Slice, varying_columns
from hyperp.analysis.vocabulary import LN2

FREE_BEND_SD = 1.0  # of a bend that the data alone decide
FAR = 4.0  # standard deviations from the law of the other slices at which a slice is named
SUSPECT = 2.0  # standard deviations, with the slice's own part in the scatter, from which one is looked at
SUSPECTS = 3
CENTRAL = 0.6827  # of a normal, within one standard deviation
AHEAD = 8.0  # times the fitted range, where a bend is priced


def hierarchical_parts(
    request: FitRequest,
    slices: Sequence[Slice],
    found: MethodResult,
    usable: Sequence[int],
    basin: BasinRecord | None,
) -> LawParts:
    """Fit the hierarchical law of the slices in `usable`, and everything that tests it.

    Args:
        request: what was asked.
        slices, found: all slices and what the method found of them.
        usable: the places of those that the law uses, one-sided ones too.
        basin: what a miss costs.
    """
    used, optima = [slices[i] for i in usable], [found.optima[i] for i in usable]
    also_by = request.also_by or request.by
    tables = {"lr": slice_tables(found, usable)}
    fits = {"lr": fit_of(tables["lr"], used, request.by, request, request.fix)}
    for name in request.over[1:]:
        tables[name] = tables_of_optima(*_points(optima, name))
        fits[name] = fit_of(tables[name], used, also_by, replace(request, prior={}), {})
    warnings: list[str] = []
    records = {}
    for name, fit in fits.items():
        free = _free_bends(fit, tables[name], used, request, name)
        spread = _slice_errors(optima, name), _residuals(fit, used, optima, name, request)
        records[name] = coefficients(fit, request, *spread, free)
        warnings += _outliers(fit, tables[name], used, optima, request, name)
        warnings += _bend_warnings(fit, free, records[name], used, request, name)
        if not fit.converged:
            warnings.append(f"the posterior of the law of {name} did not converge")
    own = fits["lr"]
    return LawParts(
        own=records["lr"],
        also={name: record for name, record in records.items() if name != "lr"},
        middle={name: _middle(fit, used, request, name) for name, fit in fits.items()},
        fixed_tests={name: _fixed_test(request, tables["lr"], used, name) for name in request.fix},
        curvature_tests={},
        leave_one_out=_leave_one_out(fits, used, optima, basin),
        warnings=warnings,
        shares=own.share.tolist(),
        priors=_prior_records(own, request),
        without_priors=PosteriorRecord.of(own.terms, own.without_priors) if request.prior else None,
    )


def hierarchical_coefficients(
    request: FitRequest, slices: Sequence[Slice], found: MethodResult, usable: Sequence[int]
) -> dict[str, Coefficients]:
    """The coefficients alone, for the rate and for what was tuned beside it; see `hierarchical_parts`."""
    used, optima = [slices[i] for i in usable], [found.optima[i] for i in usable]
    own = fit_of(slice_tables(found, usable), used, request.by, request, request.fix)
    records = {"lr": coefficients(own, request)}
    for name in request.over[1:]:
        second = tables_of_optima(*_points(optima, name))
        fit = fit_of(second, used, request.also_by or request.by, replace(request, prior={}), {})
        records[name] = coefficients(fit, request)
    return records


def slice_tables(found: MethodResult, usable: Sequence[int]) -> LikelihoodTables:
    """The likelihoods of the optima of these slices, which share a context."""
    for context in found.likelihoods:
        if usable[0] in context.members:
            return context.tables.select(np.array([context.row_of(i) for i in usable]))
    return tables_of_optima(*_points([found.optima[i] for i in usable], "lr"))


def fit_of(
    tables: LikelihoodTables,
    used: Sequence[Slice],
    by: Sequence[str],
    request: FitRequest,
    fix: Mapping[str, float],
    scatter: float | None = None,
) -> Hierarchy:
    """The hierarchical law of slices by these covariates; some exponents and the scatter may be held."""
    logs = np.log([[float(one.covariates[name]) for name in by] for one in used])
    known = [sum(b * math.log(one.covariates[n]) for n, b in fix.items()) for one in used]
    priors = LawPriors(request.tau_sd, request.bend_sd, {n: p for n, p in request.prior.items() if n in by})
    return fit_hierarchy(tables, logs, by, priors, np.array(known, dtype=float), scatter)


def coefficients(
    found: Hierarchy,
    request: FitRequest,
    slice_sd: float = 0.0,
    residual_sd: float = 0.0,
    free: Hierarchy | None = None,
) -> Coefficients:
    """The fitted coefficients with their intervals, for covariates that are not centred."""
    q, level = len(found.by), request.level
    back = np.eye(1 + q, found.terms.rows(found.terms.centre).shape[-1])
    back[0, 1 : 1 + q] -= found.terms.centre
    mean, cov = found.posterior.moments
    value, cov = back @ mean, back @ cov @ back.T
    tails = ((1 - level) / 2, (1 + level) / 2)
    estimates = []
    for j in range(1 + q):
        low, high = found.posterior.quantiles(back[j], tails, scatter=False)
        estimates.append(
            Estimate(
                value=float(value[j]),
                se=float(np.sqrt(cov[j, j])),
                low=min(low, float(value[j])),
                high=max(high, float(value[j])),
            )
        )
    weight, tau = found.posterior.weight, found.posterior.tau
    low_tau, high_tau = _scatter_interval(weight, tau, tails)
    return Coefficients(
        a=estimates[0],
        exponents=dict(zip(found.by, estimates[1:], strict=True)),
        covariance=((cov + cov.T) / 2).tolist(),
        df=max(len(found.share) - 1 - q, 1),
        tau=float(weight @ tau),
        slice_sd=slice_sd,
        residual_sd=residual_sd,
        tau_interval=(low_tau, high_tau),
        bends=bend_records(found, free, request.bend_sd, level) if request.bend_sd > 0 else {},
        posterior=PosteriorRecord.of(found.terms, found.posterior),
    )


def _scatter_interval(weight: np.ndarray, tau: np.ndarray, tails: tuple[float, float]) -> tuple[float, float]:
    """The interval of the scatter; each of its equally spaced values stands for the cell about it."""
    values, place = np.unique(tau, return_inverse=True)
    if len(values) == 1:
        return float(values[0]), float(values[0])
    half = float(np.diff(values).min()) / 2
    mass = np.bincount(place, weights=weight)
    edges = np.concatenate([values - half, values[-1:] + half])
    cumulative = np.append(0.0, np.cumsum(mass) / mass.sum())
    low, high = np.interp(tails, cumulative, edges)
    return max(float(low), 0.0), float(high)


def probability_of(found: Hierarchy, index: int, value: float) -> float:
    """Two-sided tail probability of a coefficient's value under its posterior."""
    p = found.posterior
    below = float(p.weight @ ndtr((value - p.mean[:, index]) / np.sqrt(p.cov[:, index, index])))
    return min(2 * min(below, 1 - below), 1.0)


def _points(optima: Sequence[Optimum], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Optima, standard errors and roundings in natural log; zero where one is not known."""
    at = [o.log2_lr if name == "lr" else o.also[name] for o in optima]
    errors = [o.se if name == "lr" else o.also_se.get(name) for o in optima]
    rounding = [o.rounding or 0.0 if name == "lr" else 0.0 for o in optima]
    return (
        np.array(at, dtype=float) * LN2,
        np.array([e or 0.0 for e in errors]) * LN2,
        np.array(rounding) * LN2,
    )


def _slice_errors(optima: Sequence[Optimum], name: str) -> float:
    """Root mean square of the standard errors of the optima that the rates bracket, natural log."""
    errors = [o.se if name == "lr" else o.also_se.get(name) for o in optima if o.state == "bracketed"]
    return LN2 * math.sqrt(float(np.mean([(e or 0.0) ** 2 for e in errors])))


def _residuals(
    found: Hierarchy, used: Sequence[Slice], optima: Sequence[Optimum], name: str, request: FitRequest
) -> float:
    """Scatter of the bracketed optima about the fitted line, natural log."""
    keep = [i for i, o in enumerate(optima) if o.state == "bracketed"]
    at = _points([optima[i] for i in keep], name)[0]
    line = [_line(found, used[i], request, name) for i in keep]
    freedom = max(len(keep) - 1 - len(found.by), 1)
    return math.sqrt(float(((at - line) ** 2).sum()) / freedom)


def _line(found: Hierarchy, one: Slice, request: FitRequest, name: str) -> float:
    """The law's value at a slice, natural log."""
    row = found.terms.rows(np.log([float(one.covariates[n]) for n in found.by]))
    fixed = request.fix if name == "lr" else {}
    return float(row @ found.posterior.moments[0]) + sum(
        b * math.log(one.covariates[n]) for n, b in fixed.items()
    )


def _middle(found: Hierarchy, used: Sequence[Slice], request: FitRequest, name: str) -> tuple[float, float]:
    """The interval of the law itself at the geometric mean of its slices, as values."""
    row = np.zeros(found.posterior.mean.shape[1])
    row[0] = 1.0
    fixed = request.fix if name == "lr" else {}
    held = math.fsum(b * math.log(one.covariates[n]) / len(used) for n, b in fixed.items() for one in used)
    tails = ((1 - request.level) / 2, (1 + request.level) / 2)
    low, high = found.posterior.quantiles(row, tails, scatter=False)
    return finite_exp(low + held), finite_exp(high + held)


def _fixed_test(request: FitRequest, tables: LikelihoodTables, used: Sequence[Slice], name: str) -> FixedTest:
    """A fixed exponent against the one that the same slices give when it alone is free."""
    value, by = request.fix[name], (*request.by, name)
    rest = {n: b for n, b in request.fix.items() if n != name}
    why = why_constant([one.covariates[name] for one in used])
    problem = None if why is None else f"{name} {why}"
    if problem is None and len(used) < len(by) + 2:
        problem = f"{len(used)} slices, {len(by) + 2} needed"
    if problem is None:
        logs = np.log([[float(one.covariates[n]) for n in by] for one in used])
        problem = why_collinear(np.column_stack([np.ones(len(logs)), logs]), by)
    if problem is not None:
        return FixedTest(fixed=value, free=None, p_value=None, problem=problem)
    free = fit_of(tables, used, by, request, rest)
    estimate = coefficients(free, request).exponents[name]
    p = probability_of(free, len(by), value)
    return FixedTest(fixed=value, free=estimate, p_value=p, problem=None)


def _leave_one_out(
    fits: Mapping[str, Hierarchy],
    used: Sequence[Slice],
    optima: Sequence[Optimum],
    basin: BasinRecord | None,
) -> list[LeftOut]:
    """Each bracketed optimum as the other slices predict it."""
    found = []
    for i, (one, optimum) in enumerate(zip(used, optima, strict=True)):
        if optimum.state != "bracketed" or optimum.lr is None:
            continue
        misses = [float(fit.others_mean[i] - _points([optimum], name)[0][0]) for name, fit in fits.items()]
        cost = None if basin is None else basin.at(one.covariates).penalty(misses)
        found.append(
            LeftOut(
                covariates=one.covariates,
                predicted=optimum.lr * math.exp(misses[0]),
                lr=optimum.lr,
                error=misses[0],
                loss_penalty=cost,
            )
        )
    return found


def _outliers(
    found: Hierarchy,
    tables: LikelihoodTables,
    used: Sequence[Slice],
    optima: Sequence[Optimum],
    request: FitRequest,
    name: str,
) -> list[str]:
    """A warning for each slice further from the law of the others than chance allows.

    A slice that is far off makes the scatter of all so large that it seems near. So the few that lie furthest
    are compared with a law fitted without them.
    """
    at, errors, _ = _points(optima, name)
    inside = [i for i, o in enumerate(optima) if o.state == "bracketed"]
    distance = {i: abs(float(at[i] - found.others_mean[i])) / float(found.others_sd[i]) for i in inside}
    suspects = sorted((i for i in inside if distance[i] > SUSPECT), key=lambda i: -distance[i])[:SUSPECTS]
    fix, names, lines = request.fix if name == "lr" else {}, varying_columns(used), []
    for i in sorted(suspects):
        rest = np.array([k for k in range(len(used)) if k != i])
        if len(rest) < len(found.by) + 2:
            continue
        others = [used[k] for k in rest]
        logs = np.log([[float(one.covariates[n]) for n in found.by] for one in others])
        if np.linalg.matrix_rank(np.column_stack([np.ones(len(logs)), logs])) <= len(found.by):
            continue
        asked = request if name == "lr" else replace(request, prior={})
        fit = fit_of(tables.most_probable.select(rest), others, found.by, asked, fix)
        row = fit.terms.rows(np.log([float(used[i].covariates[n]) for n in found.by]))
        held = sum(b * math.log(used[i].covariates[n]) for n, b in fix.items())
        half = 0.5 + CENTRAL / 2
        low, middle, high = fit.posterior.quantiles(row, (1 - half, 0.5, half))
        spread = math.hypot((high - low) / 2, float(errors[i]))
        error = float(at[i]) - middle - held
        chance = 2 * len(used) * float(ndtr(-abs(error) / spread))
        if abs(error) > FAR * spread and chance < 0.01:
            lines.append(
                f"the slice {used[i].label(names)} lies {abs(error) / spread:.3g} standard errors from the "
                f"law of the other slices: its {name} is {math.exp(error):.3g} times theirs"
            )
    return lines


def _free_bends(
    found: Hierarchy,
    tables: LikelihoodTables,
    used: Sequence[Slice],
    request: FitRequest,
    name: str,
) -> Hierarchy | None:
    """The law with bends that the data alone decide, at the most probable basin; None without bends."""
    if not found.terms.bends:
        return None
    fix = request.fix if name == "lr" else {}
    asked = replace(request, bend_sd=FREE_BEND_SD, prior={})
    return fit_of(tables.most_probable, used, found.by, asked, fix)


def _bend_warnings(
    found: Hierarchy,
    free: Hierarchy | None,
    record: Coefficients,
    used: Sequence[Slice],
    request: FitRequest,
    name: str,
) -> list[str]:
    """A warning for each bend that the data by themselves put away from zero, with what it would change."""
    lines = []
    for (i, j), bend in zip(found.terms.bends, record.bends.values(), strict=True):
        if free is None or not bend.is_clear:
            continue
        fix = request.fix if name == "lr" else {}
        logs = np.log([[float(one.covariates[n]) for n in found.by] for one in used])
        ahead = logs.max(axis=0)
        ahead[list({i, j})] += math.log(AHEAD)
        held = sum(b * max(math.log(one.covariates[n]) for one in used) for n, b in fix.items())
        tail = (1 - request.level) / 2
        ours = found.posterior.quantiles(found.terms.rows(ahead), (tail, 0.5, 1 - tail))
        theirs = free.posterior.quantiles(free.terms.rows(ahead), (0.5,))[0]
        low, middle, high, bent = (finite_exp(v + held) for v in (*ours, theirs))
        what = f"log {bend.covariates[0]}" if i == j else f"{' and '.join(bend.covariates)} together"
        lines.append(
            f"the optima bend in {what}: {bend.data_value:+.3f} +- {bend.data_se:.3f} per natural log "
            f"squared by the data alone, where +- {bend.prior_sd:.2g} is expected; at {AHEAD:g} times the "
            f"range a law with a free bend says {bent:.3g}, this one {middle:.3g} ({low:.3g} to {high:.3g})"
        )
    return lines


def _prior_records(found: Hierarchy, request: FitRequest) -> dict[str, PriorRecord]:
    """The priors on exponents, and each exponent without them."""
    records = {}
    tails = ((1 - request.level) / 2, (1 + request.level) / 2)
    plain = found.without_priors
    for name, (mean, sd) in request.prior.items():
        j = 1 + list(found.by).index(name)
        low, high = mixture_quantiles(plain.weight, plain.mean[:, j], np.sqrt(plain.cov[:, j, j]), tails)
        records[name] = PriorRecord(
            mean=mean,
            sd=sd,
            flat_part=FLAT_PART,
            without=float(plain.weight @ plain.mean[:, j]),
            without_low=low,
            without_high=high,
        )
    return records
