"""The regression of slice optima on covariates, and its tests: leave-one-out, fixed exponents, curvature."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hyperp.analysis.law.parts import LawParts
from hyperp.analysis.law.records import BasinRecord, CurvatureTest, Estimate, FixedTest, LeftOut
from hyperp.analysis.law.request import FitRequest
from hyperp.analysis.law.schema import Coefficients
from hyperp.analysis.optima.estimation import MethodResult
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.random_effects import MetaRegression, meta_regression, p_value, t_quantile
from hyperp.analysis.table.slices import Number, Slice, varying_columns
from hyperp.analysis.vocabulary import LN2, VARYING_RATIO, Space

COLLINEAR = (
    0.99  # of a covariate's variance explained by the others: its exponent's error is ten times larger
)

FAR = 4.0  # standard errors from the law of the others at which a slice is named

# K: slices   P: coefficients


def design_matrix(slices: Sequence[Slice], by: Sequence[str]) -> np.ndarray:
    """(K, 1 + len(by)): ones, then the natural logs of the covariates of K slices."""
    logs = [np.log([one.covariates[name] for one in slices]) for name in by]
    return np.column_stack([np.ones(len(slices)), *logs])


@dataclass(frozen=True)
class Sample:
    """Slices with an optimum, the covariates to regress them on, and the exponents that are held fixed."""

    slices: list[Slice]
    optima: list[Optimum]
    by: tuple[str, ...]
    fix: Mapping[str, float]
    by_runs: bool = False
    space: Space = "log"

    @classmethod
    def of(
        cls, slices: Sequence[Slice], found: MethodResult, keep: Sequence[int], request: FitRequest
    ) -> "Sample":
        """The slices with index in `keep`, to be regressed as requested."""
        kept = [slices[i] for i in keep], [found.optima[i] for i in keep]
        return cls(*kept, request.by, request.fix, found.by_runs, request.space)

    def for_tuned_with_lr(self, by: tuple[str, ...]) -> "Sample":
        """The same slices for what is tuned beside the rate: its own covariates, nothing fixed, log space."""
        return replace(self, by=by, fix={}, space="log")

    def logs(self, name: str) -> np.ndarray:
        """Natural log of a covariate, (K,)."""
        return np.log([one.covariates[name] for one in self.slices])

    @property
    def X(self) -> np.ndarray:  # noqa: N802, a design matrix
        """The design matrix, (K, 1 + len(by))."""
        return design_matrix(self.slices, self.by)

    def fixed_part(self, response: str) -> np.ndarray:
        """What the fixed exponents add to the log of the response, (K,)."""
        fixed = self.fix if response == "lr" else {}
        return sum((b * self.logs(n) for n, b in fixed.items()), np.zeros(len(self.slices)))

    def log_response(self, response: str = "lr") -> np.ndarray:
        """The natural logs of the optima, (K,)."""
        base2 = [o.log2_lr if response == "lr" else o.also[response] for o in self.optima]
        return np.array(base2, dtype=float) * LN2

    def standard_errors(self, response: str = "lr") -> np.ndarray | None:
        """Standard errors in natural log, (K,); None unless every optimum has one."""
        found = [o.se if response == "lr" else o.also_se.get(response) for o in self.optima]
        known = [se for se in found if se is not None]
        return np.array(known) * LN2 if len(known) == len(found) else None


def regress(sample: Sample, response: str = "lr", extra: np.ndarray | None = None) -> MetaRegression:
    """The regression of a response on the covariates, and on one more column `extra` (K,) if given."""
    X = sample.X if extra is None else np.column_stack([sample.X, extra])
    y = sample.log_response(response) - sample.fixed_part(response)
    if sample.space == "linear":
        return _least_squares_in_rates(y, sample.fixed_part(response), X)
    if not sample.by_runs:
        return meta_regression(y, sample.standard_errors(response), X)
    # An optimum that averages n runs counts n times, as if the runs themselves were regressed. So errors that
    # differ between optima must not weigh: all get their root mean square.
    root, se = np.sqrt([o.runs for o in sample.optima]), sample.standard_errors(response)
    root /= math.sqrt(np.mean(root**2))
    common = None if se is None else np.full(len(se), math.sqrt(np.mean(se**2)))
    return meta_regression(y * root, common, X * root[:, None])


def _least_squares_in_rates(y: np.ndarray, held: np.ndarray, X: np.ndarray) -> MetaRegression:
    """Least squares in the rates themselves, sum (exp(y + held) - exp(X beta + held))^2.

    Args:
        y: (K,) natural logs of the rates, less what the held exponents add.
        held: (K,) what the held exponents add.
        X: (K, P) design, ones first.

    Returns:
        Coefficients on the logs with their covariance by the delta method.
    """
    from scipy.optimize import curve_fit  # a recommendation does without

    centre = np.append(0.0, X[:, 1:].mean(axis=0))
    Z = X - centre
    unit = np.exp((y + held).mean())  # the solver works on rates of order one

    def rates(_: np.ndarray, *beta: float) -> np.ndarray:
        return np.exp(np.clip(Z @ beta + held, -700, 700)) / unit

    def jacobian(_: np.ndarray, *beta: float) -> np.ndarray:
        return rates(_, *beta)[:, None] * Z

    start = meta_regression(y, None, Z).beta
    tolerances = {"method": "trf", "xtol": 1e-14, "ftol": 1e-14}
    beta, cov = curve_fit(rates, Z, np.exp(y + held) / unit, p0=start, jac=jacobian, **tolerances)
    back = np.eye(len(beta))  # from the centred intercept to that at covariates of one
    back[0] -= centre
    beta, cov = back @ beta, back @ cov @ back.T
    residuals, df = y - X @ beta, len(y) - len(beta)
    return MetaRegression(beta, cov, 0.0, df, 0.0, math.sqrt(residuals @ residuals / df), residuals)


def rate_sd(sample: Sample, regression: MetaRegression) -> float | None:
    """Scatter about the curve in units of the rate, for a fit in linear space."""
    if sample.space == "log":
        return None
    rates = np.exp(sample.log_response())
    miss = rates - np.exp(sample.X @ regression.beta + sample.fixed_part("lr"))
    return math.sqrt(float(miss @ miss) / regression.df)


def coefficients(regression: MetaRegression, by: Sequence[str], level: float) -> Coefficients:
    """The fitted coefficients with their intervals, as they are recorded."""
    low, high = regression.interval(level)
    estimates = [
        Estimate(value=float(v), se=float(s), low=float(lo), high=float(hi))
        for v, s, lo, hi in zip(regression.beta, regression.se, low, high, strict=True)
    ]
    return Coefficients(
        a=estimates[0],
        exponents=dict(zip(by, estimates[1:], strict=True)),
        covariance=((regression.cov + regression.cov.T) / 2).tolist(),
        df=regression.df,
        tau=math.sqrt(regression.tau2),
        slice_sd=math.sqrt(regression.unit_variance),
        residual_sd=regression.residual_sd,
    )


def why_constant(values: Sequence[Number]) -> str | None:
    """Why these values of a covariate identify no exponent, or None if they do."""
    low, high = min(values), max(values)
    if low == high:
        return f"has one value, {low:.10g}"
    if high < VARYING_RATIO * low:
        return f"does not vary: {low:.6g} to {high:.6g} is a factor of {high / low:.3g}"
    return None


def why_collinear(X: np.ndarray, by: Sequence[str]) -> str | None:
    """Which covariates of the design X (K, 1 + len(by)) move together, or None if none do."""
    Z = X[:, 1:] - X[:, 1:].mean(axis=0)
    for j, name in enumerate(by):
        total = float(Z[:, j] @ Z[:, j])
        others = np.delete(Z, j, axis=1)
        if total == 0:
            return f"{name} does not vary in the bracketed slices"
        if not others.shape[1]:
            continue
        rest = Z[:, j] - others @ np.linalg.lstsq(others, Z[:, j], rcond=None)[0]
        explained = 1 - float(rest @ rest) / total
        if explained > COLLINEAR:
            return (
                f"{' and '.join(by)} move together in the bracketed slices "
                f"({100 * explained:.4g}% of the variance of log {name} is the others')"
            )
    return None


def leave_one_out(
    sample: Sample,
    fit: MetaRegression,
    basin: BasinRecord | None,
    also: Mapping[str, tuple[Sample, MetaRegression]],
) -> list[LeftOut]:
    """Each slice's optimum as the other slices predict it, weighted with the scatter tau of all of them.

    `also` has the sample and the regression of each further quantity tuned; the loss penalty is that of
    missing all optima together.
    """

    misses = [
        _leave_one_out_errors(sample, fit, "lr"),
        *(_leave_one_out_errors(s, f, name) for name, (s, f) in also.items()),
    ]
    found = []
    rates = np.exp(sample.log_response()).tolist()
    for one, own, error, *rest in zip(sample.slices, rates, *misses, strict=True):
        if error is None:
            continue
        known = [e for e in rest if e is not None]
        cost = (
            None
            if basin is None or len(known) < len(rest)
            else basin.at(one.covariates).penalty((error, *known))
        )
        found.append(
            LeftOut(
                covariates=one.covariates,
                predicted=own * math.exp(error),
                lr=own,
                error=error,
                loss_penalty=cost,
            )
        )
    return found


def _leave_one_out_errors(sample: Sample, fit: MetaRegression, response: str) -> list[float | None]:
    """ln(predicted / own) for each slice left out; None where the other slices do not identify the line."""
    X, held = sample.X, sample.fixed_part(response)
    y = sample.log_response(response) - held
    root = np.sqrt(1 / _variances(sample, fit, response))
    found: list[float | None] = []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        linear = sample.space == "linear"
        if np.linalg.matrix_rank(X[rest]) < X.shape[1] or (linear and rest.sum() <= X.shape[1]):
            found.append(None)
            continue
        if linear:
            beta = _least_squares_in_rates(y[rest], held[rest], X[rest]).beta
        else:
            beta = np.linalg.lstsq(X[rest] * root[rest, None], y[rest] * root[rest], rcond=None)[0]
        found.append(float(X[i] @ beta - y[i]))
    return found


def outliers(sample: Sample, response: str = "lr") -> list[str]:
    """A warning for each slice that lies further from the law of the others than chance allows.

    The residual of a slice left out over its standard error, both from the others alone (externally
    studentised); at least FAR of them, and a p-value below 1% after Bonferroni's correction.
    """
    K, names = len(sample.slices), varying_columns(sample.slices)
    if sample.X.shape[1] + 1 >= K or sample.by_runs or sample.space == "linear":
        return []
    found = []
    for i, one in enumerate(sample.slices):
        rest = [k for k in range(K) if k != i]
        others = replace(
            sample, slices=[sample.slices[k] for k in rest], optima=[sample.optima[k] for k in rest]
        )
        if np.linalg.matrix_rank(others.X) < sample.X.shape[1]:
            continue
        fit, x, se = regress(others, response), sample.X[i], sample.standard_errors(response)
        own = 0.0 if se is None else float(se[i] ** 2)
        spread = math.sqrt(max(float(x @ fit.cov @ x), 0.0) + fit.tau2 + own)
        error = float((sample.log_response(response) - sample.fixed_part(response))[i] - x @ fit.beta)
        if abs(error) > max(FAR * spread, 1e-6) and K * p_value(error, spread, fit.df, 0.0) < 0.01:
            size = f"{abs(error) / spread:.3g} standard errors" if spread else "off"
            found.append(
                f"the slice {one.label(names)} lies {size} from the law of the other slices: "
                f"its {response} is {math.exp(error):.3g} times theirs"
            )
    return found


def _variances(sample: Sample, fit: MetaRegression, response: str) -> np.ndarray:
    """The variance of each slice about the line, (K,), up to a factor common to all."""
    se = sample.standard_errors(response)
    variance = fit.tau2 + (np.zeros(len(sample.slices)) if se is None else se**2)
    runs = np.array([o.runs for o in sample.optima]) if sample.by_runs else np.ones(len(variance))
    return np.where(variance > 0, variance, 1.0) / runs


def fixed_tests(sample: Sample, level: float) -> dict[str, FixedTest]:
    """Test each fixed exponent against the one that the same slices give when it alone is free."""
    return {name: _fixed_test(sample, name, level) for name in sample.fix}


def _fixed_test(sample: Sample, name: str, level: float) -> FixedTest:
    value = sample.fix[name]
    by = (*sample.by, name)
    rest = {n: b for n, b in sample.fix.items() if n != name}
    free = Sample(sample.slices, sample.optima, by, rest, sample.by_runs, sample.space)
    why = why_constant([one.covariates[name] for one in sample.slices])
    problem = None if why is None else f"{name} {why}"
    if problem is None and len(sample.slices) < len(by) + 2:
        problem = f"{len(sample.slices)} slices, {len(by) + 2} needed"
    if problem is None:
        problem = why_collinear(free.X, by)
    if problem is not None:
        return FixedTest(fixed=value, free=None, p_value=None, problem=problem)
    fit = regress(free)
    low, high = fit.interval(level)
    estimate = Estimate(
        value=float(fit.beta[-1]), se=float(fit.se[-1]), low=float(low[-1]), high=float(high[-1])
    )
    return FixedTest(fixed=value, free=estimate, p_value=fit.p_value(len(by), value), problem=None)


def curvature_tests(sample: Sample) -> dict[str, CurvatureTest]:
    """Test the squared log of each covariate as a further term, where values and degrees of freedom allow."""
    found = {}
    for name in sample.by:
        logs = sample.logs(name)
        if len(sample.slices) < len(sample.by) + 3 or len(np.unique(logs)) < 3:
            continue
        square = (logs - logs.mean()) ** 2
        if np.linalg.matrix_rank(np.column_stack([sample.X, square])) < len(sample.by) + 2:
            continue
        fit = regress(sample, extra=square)
        p = fit.p_value(len(sample.by) + 1)
        found[name] = CurvatureTest(value=float(fit.beta[-1]), se=float(fit.se[-1]), p_value=p, df=fit.df)
    return found


def regression_parts(
    request: FitRequest,
    slices: Sequence[Slice],
    found: MethodResult,
    usable: Sequence[int],
    basin: BasinRecord | None,
) -> LawParts:
    """Regress the optima of the slices in `usable`, and test the law; arguments as `hierarchical_parts`."""
    sample = Sample.of(slices, found, usable, request)
    regression = regress(sample)
    also_by = request.also_by or request.by
    second = sample.for_tuned_with_lr(also_by)
    also = {name: (second, regress(second, name)) for name in request.over[1:]}
    fits = {"lr": (sample, regression), **also}
    return LawParts(
        own=coefficients(regression, request.by, request.level),
        also={name: coefficients(fit, also_by, request.level) for name, (_, fit) in also.items()},
        middle={name: _middle_interval(*fit, name, request.level) for name, fit in fits.items()},
        fixed_tests=fixed_tests(sample, request.level),
        curvature_tests=curvature_tests(sample),
        leave_one_out=leave_one_out(sample, regression, basin, also),
        warnings=[line for name, (one, _) in fits.items() for line in outliers(one, name)],
        rate_sd=rate_sd(sample, regression),
    )


def _middle_interval(sample: Sample, fit: MetaRegression, response: str, level: float) -> tuple[float, float]:
    """Confidence limits of the law itself at the geometric mean of its slices."""
    x = sample.X.mean(axis=0)
    centre = float(x @ fit.beta + sample.fixed_part(response).mean())
    half = t_quantile(fit.df, level) * math.sqrt(max(float(x @ fit.cov @ x), 0.0)) + 1e-9
    return math.exp(centre - half), math.exp(centre + half)
