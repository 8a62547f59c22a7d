"""The file law.json: a fitted law with all that a prediction needs, and the slices that it was fitted to."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from hyperp.analysis.files import read_json, validate_content, write_text
from hyperp.analysis.law.hierarchy.record import BendRecord, PosteriorRecord, PriorRecord
from hyperp.analysis.law.records import (
    BasinRecord,
    BySeed,
    Count,
    Covariate,
    CurvatureTest,
    Estimate,
    FixedTest,
    LeftOut,
    Level,
    NotNegative,
    OtherMethod,
    Positive,
    SeedSpread,
    Size,
    SliceRecord,
    SliceSize,
    finite_exp,
)
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.vocabulary import DEFAULT_REACH, Space
from hyperp.validation import Strict

SCHEMA_VERSION = 4
FARTHEST = 100.0  # times the fitted range, up to which it is said from where on the law's form decides
FORM = "lr = exp(a) * product of covariate^b"


class Coefficients(Strict):
    """ln y = a + sum b_i ln covariate_i + sum fixed_j ln covariate_j.

    `covariance` is of (a, b_1, ...) in the order of `exponents`. `tau` is the scatter of slice optima
    beyond their own errors, `slice_sd` the root mean square of these errors, `residual_sd` the scatter about
    the line; all in natural log. With a `posterior` (the method hierarchical), predictions are its own, of
    the optimum at the target with its scatter; tau is the posterior mean of the scatter and `tau_interval`
    its interval, and `bends` are the quadratic terms. Without one, the variance of a prediction is
    x' covariance x + tau^2 + slice_sd^2, with Student's t on `df`.
    """

    a: Estimate
    exponents: dict[str, Estimate]
    covariance: list[list[float]]
    df: Size
    tau: NotNegative
    slice_sd: NotNegative
    residual_sd: NotNegative
    tau_interval: tuple[NotNegative, NotNegative] | None = None
    bends: dict[str, BendRecord] = Field(default_factory=dict)
    posterior: PosteriorRecord | None = None

    def logs(self, target: Mapping[str, float]) -> np.ndarray:
        """Natural logs (q,) of the covariates at a target."""
        return np.array([math.log(target[name]) for name in self.exponents])


class Law(Coefficients):
    """A fitted law of the learning rate; `also` has a law for each quantity that was tuned beside it.

    `space` is "log", or "linear" for least squares in the rates themselves: `rate_sd` is then the scatter
    about the curve in units of the rate, and tau and slice_sd are zero. `reach` is the largest factor beyond
    `ranges` at which a rate is recommended. `beside` has the laws of the other methods. `priors` are those on
    exponents, `tau_sd` (octaves) and `bend_sd` (per natural log squared) those of the scatter and of the
    bends; None where the method has none. `without_priors` is the posterior without those on exponents.
    `trainer` is what the runs were of: hyperp, command or another, None where the table does not say.
    """

    schema_version: Literal[4] = SCHEMA_VERSION
    form: Literal["lr = exp(a) * product of covariate^b"] = FORM
    space: Space = "log"
    method: str
    over: list[str]
    context: dict[str, str]
    trainer: str | None = None
    covariates: list[str]
    also: dict[str, Coefficients]
    fixed: dict[str, float]
    fixed_tests: dict[str, FixedTest]
    curvature_tests: dict[str, CurvatureTest]
    leave_one_out: list[LeftOut]
    beside: list[OtherMethod]
    by_seed: dict[str, BySeed] = Field(default_factory=dict)
    priors: dict[str, PriorRecord] = Field(default_factory=dict)
    without_priors: PosteriorRecord | None = None
    tau_sd: Positive | None = None
    bend_sd: NotNegative | None = None
    warnings: list[str]
    basin: BasinRecord | None
    rate_sd: NotNegative | None
    level: Level
    reach: Annotated[float, Field(ge=1)] = DEFAULT_REACH
    ranges: dict[str, tuple[Covariate, Covariate]]
    held: dict[str, SliceSize]
    rate_factor: Positive | None
    window: Positive
    seed_spread: SeedSpread
    slices: list[SliceRecord]
    rows: Count
    dropped: dict[str, Count]
    where: dict[str, str]
    mapping: dict[str, str]
    records: str
    records_sha256: str
    version: str
    created: str
    command: str

    @property
    def middle(self) -> dict[str, float]:
        """The geometric mean of every covariate of the law over the slices used."""
        used = [s for s in self.slices if s.used]
        return {n: math.exp(sum(math.log(s.covariates[n]) for s in used) / len(used)) for n in self.ranges}

    def interval_at(self, target: Mapping[str, float], response: str = "lr") -> tuple[float, float, float]:
        """The predicted value at a target scale, and the low and high end of its prediction interval.

        Args:
            target: a size for every covariate of the law, the fixed ones too.
            response: lr, or the name of what was tuned beside it.
        """
        found = self if response == "lr" else self.also[response]
        fixed = self.fixed if response == "lr" else {}
        held = sum(b * math.log(target[name]) for name, b in fixed.items())
        if found.posterior is not None:
            return self._interval_of(found.posterior, found.logs(target), held)
        x = np.append(1.0, found.logs(target))
        beta = np.array([found.a.value, *(e.value for e in found.exponents.values())])
        centre = float(x @ beta) + held
        variance = float(x @ np.array(found.covariance) @ x) + found.tau**2 + found.slice_sd**2
        if response == "lr" and self.rate_sd is not None:
            # The scatter is in units of the rate; divided by the rate it is one in natural log.
            variance += (self.rate_sd / finite_exp(centre)) ** 2
        half = t_quantile(found.df, self.level) * math.sqrt(max(variance, 0.0))
        return finite_exp(centre), finite_exp(centre - half), finite_exp(centre + half)

    def interval_without_priors(self, target: Mapping[str, float]) -> tuple[float, float, float] | None:
        """The rate and its interval without the priors on exponents; None where there are none."""
        if self.without_priors is None:
            return None
        held = sum(b * math.log(target[name]) for name, b in self.fixed.items())
        return self._interval_of(self.without_priors, self.logs(target), held)

    def _interval_of(
        self, record: PosteriorRecord, logs: np.ndarray, held: float
    ) -> tuple[float, float, float]:
        tail = (1 - self.level) / 2
        row = record.terms.rows(logs)
        low, middle, high = record.posterior.quantiles(row, (tail, 0.5, 1 - tail))
        return finite_exp(middle + held), finite_exp(low + held), finite_exp(high + held)

    def variance_shares(self, target: Mapping[str, float]) -> dict[str, float] | None:
        """The parts of the variance of the optimum at a target, which sum to one; None without a posterior.

        `coefficients` is that of the power law's own, `bend` what the law's form may be other than a power
        law, `scatter` that of slices about the law, `shape` what is not known of basin and noise.
        """
        if self.posterior is None:
            return None
        row = self.posterior.terms.rows(self.logs(target))
        parts = self.posterior.posterior.variance_parts(row, 1 + len(self.covariates))
        total = sum(parts.values())
        return {name: value / total for name, value in parts.items()}

    def form_decides_beyond(self, name: str, target: Mapping[str, float]) -> float | None:
        """The factor beyond the range of a covariate from which the form of the law is most of the variance.

        The other covariates are at the target. None without bends, or where no factor up to FARTHEST does:
        what little data know, they know no better further out.
        """
        if self.posterior is None or not self.bends:
            return None
        low, high = self.ranges[name]
        above = target[name] >= math.sqrt(low * high)

        def share(factor: float) -> float:
            size = high * factor if above else low / factor
            return (self.variance_shares({**target, name: size}) or {})["bend"]

        factors = np.geomspace(1.0, FARTHEST, 81)
        return next((float(f) for f in factors if share(float(f)) > 0.5), None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.covariates or list(self.exponents) != self.covariates:
            raise ValueError(f"exponents must be for {self.covariates}, got {sorted(self.exponents)}")
        if set(self.ranges) != {*self.covariates, *self.fixed}:
            raise ValueError(
                f"ranges must be for {[*self.covariates, *self.fixed]}, got {sorted(self.ranges)}"
            )
        for name, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"ranges.{name} must be ordered, got {low} to {high}")
        for coefficients in (self, *self.also.values()):
            _check_covariance(coefficients)
        if list(self.also) != self.over[1:]:
            raise ValueError(f"also must be for {self.over[1:]}, got {list(self.also)}")
        used = sum(s.used for s in self.slices)
        if used != self.df + 1 + len(self.covariates):
            raise ValueError(
                f"df must be the slices used less the coefficients, got {self.df} for {used} slices"
            )
        if any(s.used and s.optimum is None for s in self.slices):
            raise ValueError("slices that are used must have an optimum")
        return self


def _check_covariance(found: Coefficients) -> None:
    n = 1 + len(found.exponents)
    if len(found.covariance) != n or any(len(row) != n for row in found.covariance):
        raise ValueError(f"covariance must be {n} x {n}")
    matrix = np.array(found.covariance)
    scale = float(np.abs(matrix).max())
    if not np.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-12 * scale):
        raise ValueError("covariance must be symmetric")
    if np.linalg.eigvalsh(matrix).min() < -1e-9 * scale:
        raise ValueError("covariance must be positive semi-definite")
    estimates = [found.a, *found.exponents.values()]
    for estimate, variance in zip(estimates, np.diag(matrix), strict=True):
        if not math.isclose(estimate.se**2, variance, rel_tol=1e-6, abs_tol=1e-12 * scale):
            raise ValueError(
                f"covariance must agree with the standard errors, got {variance} for se {estimate.se}"
            )


AnyLaw = TypeVar("AnyLaw", bound=Law)


def law_digest(law: Law) -> str:
    """The SHA-256 of all fields of a law, independent of the layout of its file."""
    text = json.dumps(law.model_dump(mode="json"), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def law_text(law: Law) -> str:
    """The text of law.json: the law and its digest, by which `load_law` recognizes an edited file."""
    return json.dumps({**law.model_dump(mode="json"), "sha256": law_digest(law)}, indent=2, allow_nan=False)


def save_law(law: Law, path: str | Path) -> None:
    """Write law.json, whole or not at all."""
    write_text(law_text(law) + "\n", path)


def load_law(path: str | Path, model: type[AnyLaw]) -> AnyLaw:
    """Read law.json as a law of the class `model`.

    Raises:
        ValueError: as `read_json`; a field is wrong; or the law was changed after it was fitted.
    """
    raw = read_json(path, SCHEMA_VERSION)
    sealed = raw.pop("sha256", None)
    law = validate_content(path, raw, model)
    if law_digest(law) != sealed:
        raise ValueError(f"{path} was changed after it was fitted; fit it again")
    return law
