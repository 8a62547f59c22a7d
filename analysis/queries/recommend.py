"""The recommended rate at a target scale, with its prediction interval and its factors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from hyperp.analysis.answers import Answer
from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.records import BasinRecord, finite_exp
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.group_rates import GroupRates, group_rates
from hyperp.analysis.queries.target import (
    Extrapolation,
    complete_target,
    extrapolations,
    require_context,
    require_reach,
)
from hyperp.analysis.vocabulary import PUBLISHED_EXPONENTS
from hyperp.validation import Strict

if TYPE_CHECKING:  # a recommendation imports no pandas
    import pandas as pd

WIDE_INTERVAL = 30.0  # an interval whose ends differ by more than this factor hardly identifies the rate


class Factor(Strict):
    """One factor of the law: contribution = value^exponent; the coefficient exp(a) has neither."""

    name: str
    value: float | int | None
    exponent: float | None
    low: float | None
    high: float | None
    fixed: bool
    contribution: float
    published: list[str]


class TunedWithLr(Strict):
    """The recommended value, with its prediction interval, of a quantity that was tuned beside lr."""

    value: float
    low: float
    high: float


class Recommendation(Answer, Strict):
    """A rate with its prediction interval.

    The interval holds the optimum at the target, with the scatter that slices have about the law, if the law
    holds there; of a method without a posterior, it is for what one more slice like the fitted ones would
    show. `penalty_low` and `penalty_high` are the relative
    losses that the recommended rate would cost if the optimum lay at that end of the interval and everything
    in `also` wherever in its own interval this costs most. `also` is what was tuned beside lr. `base_lr` is
    None if the ratio lr/base_lr differs between slices. `shares` are the parts of the variance, see
    `Law.variance_shares`; `form_decides` names for each covariate the factor beyond its range from which the
    form of the law, not the data, decides; `without_priors` is the answer without priors on exponents.
    `groups` has the rate of every parameter group that is known; `lr` is that of the hidden matrices.
    """

    lr: float
    low: float
    high: float
    level: float
    df: int
    penalty_low: float | None
    penalty_high: float | None
    also: dict[str, TunedWithLr]
    target: dict[str, int | float]
    context: dict[str, str]
    trainer: str | None = None
    factors: list[Factor]
    extrapolation: list[Extrapolation]
    warnings: list[str]
    rate_factor: float | None
    base_lr: float | None
    shares: dict[str, float] | None = None
    form_decides: dict[str, float] = Field(default_factory=dict)
    without_priors: TunedWithLr | None = None
    groups: GroupRates

    def headline(self) -> str:
        """The rate with its interval, and so what was tuned beside it."""
        interval = f"{100 * self.level:g}% prediction interval {self.low:.4g} to {self.high:.4g}"
        others = [f"; {n} = {b.value:.4g}, {b.low:.4g} to {b.high:.4g}" for n, b in self.also.items()]
        return f"lr = {self.lr:.4g}, {interval}{''.join(others)}"

    def for_trainer(self, trainer: str, sequence_length: int | None = None) -> str:
        """The recommendation in the form that a trainer takes, each number with where it comes from.

        Args:
            trainer: megatron or nanochat (arguments as a bash array), torchtitan (TOML), hf (YAML of
                TrainingArguments), hyperp (overrides of hyperp-train) or json.
            sequence_length: tokens in a sequence, for trainers whose batch counts sequences.

        Raises:
            ValueError: an unknown trainer, a length that does not divide the batch, or for hyperp a law whose
                rates hyperp-train cannot train with.
        """
        from hyperp.analysis.queries.trainer_text import text_for_trainer

        return text_for_trainer(self, trainer, sequence_length)

    def to_frame(self) -> "pd.DataFrame":
        """One row: the target, the rate with its interval, and what was tuned beside it."""
        import pandas as pd

        row: dict[str, float | None] = {**self.target, "lr": self.lr, "low": self.low, "high": self.high}
        for name, tuned in self.also.items():
            row |= {name: tuned.value, f"{name}_low": tuned.low, f"{name}_high": tuned.high}
        ends = {"penalty_low": self.penalty_low, "penalty_high": self.penalty_high}
        return pd.DataFrame([{**row, **ends, "base_lr": self.base_lr}])


def recommend_rate(
    law: Law,
    target: Mapping[str, float],
    context: Mapping[str, str] | None = None,
    extrapolate: bool = False,
) -> Recommendation:
    """Recommend the rate for a target scale.

    Args:
        law: the fitted law.
        target: sizes by covariate; those that all slices of the law share may be left out.
        context: the optimizer, parametrization, schedule, data or metric that the rate is for; must be the
            law's.
        extrapolate: answer beyond the law's largest extrapolation factor too.

    Raises:
        ValueError: an unknown covariate, a size that is not positive, or a covariate of the law left out.
        Refusal: another context than the law's, a covariate at another value than the one that all slices of
            the law share, or a target beyond the law's largest extrapolation factor.
    """
    require_context(law, context or {})
    scale = complete_target(law, target)
    extrapolation = extrapolations(law, scale)
    if not extrapolate:
        require_reach(law, scale, extrapolation)
    lr, low, high = law.interval_at(scale)
    also = {name: _tuned_with_lr(law, scale, name) for name in law.also}
    basin = None if law.basin is None else law.basin.at(scale)
    outside = [
        f"{e.covariate}={e.value} lies {e.factor:.3g} times outside the fitted range {e.low} to {e.high}"
        for e in extrapolation
        if e.factor > 1
    ]
    form = {name: law.form_decides_beyond(name, scale) for name in law.exponents}
    plain = law.interval_without_priors(scale)
    return Recommendation(
        shares=law.variance_shares(scale),
        form_decides={name: factor for name, factor in form.items() if factor is not None},
        without_priors=None if plain is None else TunedWithLr(value=plain[0], low=plain[1], high=plain[2]),
        lr=lr,
        low=low,
        high=high,
        level=law.level,
        df=law.df,
        # With the optimum at the low end the recommended rate is too high by that much, and vice versa.
        penalty_low=None if basin is None else _largest_penalty(basin, math.log(lr / low), also),
        penalty_high=None if basin is None else _largest_penalty(basin, math.log(lr / high), also),
        also=also,
        target=scale,
        context=law.context,
        trainer=law.trainer,
        factors=_factors(law, scale),
        extrapolation=extrapolation,
        warnings=[*outside, *_clear_bends(law, extrapolation), *_wide_intervals((low, high), also)],
        rate_factor=law.rate_factor,
        base_lr=None if law.rate_factor is None else lr / law.rate_factor,
        groups=group_rates(law, scale, lr),
    )


def _clear_bends(law: Law, extrapolation: Sequence[Extrapolation]) -> list[str]:
    """A warning for each bend that the data show, where the target is outside the range in its covariate."""
    outside = {one.covariate for one in extrapolation if one.factor > 1}
    return [
        f"the optima bend in {bend.name}, {bend.data_value:+.3f} +- {bend.data_se:.3f} by the data alone "
        f"where +- {bend.prior_sd:.2g} is expected, so the interval may be too narrow here: "
        f"{argument('bend_sd', f'{abs(bend.data_value or 0.0):.2g}')} lets the law bend as far"
        for bend in law.bends.values()
        if bend.is_clear and outside & set(bend.covariates)
    ]


def refuse_wide_interval(law: Law, found: Recommendation) -> None:
    """Refuse, with the runs that would narrow it, an interval wider than a factor of WIDE_INTERVAL."""
    if lines := _wide_intervals((found.low, found.high), found.also):
        from hyperp.analysis.queries.next_runs import next_runs  # imports pandas

        target = {name: found.target[name] for name in law.ranges}
        reason = f"{'; '.join(lines)}; {argument('extrapolate', True)} gives it anyway"
        raise Refusal(reason, next_runs(law, target).points)


def published_exponents(name: str) -> list[str]:
    """The published exponents of a covariate, each as text with its domain and source."""
    return [f"{p.exponent:g} ({p.domain}; {p.source})" for p in PUBLISHED_EXPONENTS.get(name, ())]


def _wide_intervals(rate: tuple[float, float], also: Mapping[str, TunedWithLr]) -> list[str]:
    ends = {"lr": rate, **{name: (tuned.low, tuned.high) for name, tuned in also.items()}}
    return [
        f"the prediction interval of {name} spans a factor of {high / low:.2g}: the data hardly identify it; "
        "`hyperp-law next` lists the runs that would"
        for name, (low, high) in ends.items()
        if high > WIDE_INTERVAL * low
    ]


def _largest_penalty(basin: BasinRecord, displacement: float, also: Mapping[str, TunedWithLr]) -> float:
    """The cost of a rate displaced by so many natural logs, at the costliest ends of the other intervals."""
    others = [(0.0, math.log(t.value / t.low), math.log(t.value / t.high)) for t in also.values()]
    return max(basin.penalty((displacement, *rest)) for rest in itertools.product(*others))


def _tuned_with_lr(law: Law, scale: Mapping[str, float], name: str) -> TunedWithLr:
    value, low, high = law.interval_at(scale, name)
    return TunedWithLr(value=value, low=low, high=high)


def _factors(law: Law, scale: Mapping[str, float]) -> list[Factor]:
    plain: dict[str, Any] = {"value": None, "exponent": None, "published": []}
    coefficient = {
        "name": "exp(a)",
        "low": finite_exp(law.a.low),
        "high": finite_exp(law.a.high),
        "contribution": finite_exp(law.a.value),
    }
    factors = [Factor(fixed=False, **plain, **coefficient)]
    for name in law.ranges:
        estimate = law.exponents.get(name)
        exponent = law.fixed[name] if estimate is None else estimate.value
        factors.append(
            Factor(
                name=name,
                value=scale[name],
                exponent=exponent,
                low=None if estimate is None else estimate.low,
                high=None if estimate is None else estimate.high,
                fixed=estimate is None,
                contribution=scale[name] ** exponent,
                published=published_exponents(name),
            )
        )
    if law.bends:
        # What the mean of the bends adds, and the median of a skewed posterior beside its mean.
        rest = law.interval_at(scale)[0] / math.prod(f.contribution for f in factors)
        factors.append(Factor(name="bend", low=None, high=None, fixed=False, contribution=rest, **plain))
    return factors
