"""A recommendation as Hydra overrides, for hyperp-train and hyperp-sweep."""

from typing import TYPE_CHECKING

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.target import point_about_law
from hyperp.analysis.vocabulary import option_overrides, unknown_options
from hyperp.run_table import COVARIATES

if TYPE_CHECKING:  # which imports this module for `Recommendation.for_trainer`
    from hyperp.analysis.queries.recommend import Recommendation


def hydra_overrides(recommendation: "Recommendation", law: Law | None = None) -> str:
    """Overrides for hyperp-train and hyperp-sweep: the law's context, the base rate and every size.

    They include the sizes that all slices of the law share, since it says nothing about other values, such as
    the defaults of hyperp-train. With the law of the recommendation, a refusal names the runs to do next.

    Raises:
        ValueError: the law is for an optimizer that hyperp-train does not have, something was tuned for which
            it has no key, or there was no base_lr.
        Refusal: lr/base_lr differs between the law's slices, so no base rate stands for the recommended one.
    """
    option = argument("trainer='hyperp'", option="--hydra")
    if unknown := unknown_options(recommendation.context):
        raise ValueError(
            f"{option}: the law was fitted for {', '.join(unknown)}, which hyperp-train does not have; "
            f"use the plain rate, lr={recommendation.lr:.6g}"
        )
    values = {"lr": recommendation.lr, **{n: b.value for n, b in recommendation.also.items()}}
    if foreign := [name for name in recommendation.also if name not in COVARIATES]:
        raise ValueError(
            f"{option}: {', '.join(foreign)} was tuned with the rate, and hyperp-train has no such key; "
            f"use the plain values, {', '.join(f'{n}={v:.6g}' for n, v in values.items())}"
        )
    if recommendation.base_lr is None and not (law and any(s.factor for s in law.slices if s.used)):
        raise ValueError(
            f"{option}: the law's table had no base_lr, or none in proportion to lr; "
            f"use the plain rate, lr={recommendation.lr:.6g}"
        )
    if recommendation.base_lr is None:
        assert law is not None
        raise Refusal(
            "lr/base_lr differs between the law's slices, so the base rate at the target is not known; "
            "sweep raw rates, every exponent of the parametrization zero",
            [point_about_law(law, recommendation.target)],
        )
    overrides = option_overrides(recommendation.context)
    overrides += [f"base_lr={recommendation.base_lr:.6g}"]
    overrides += [
        f"scale.{name}={recommendation.target[name]}" for name in COVARIATES if name in recommendation.target
    ]
    overrides += [f"scale.{n}={round(b.value)}" for n, b in recommendation.also.items()]
    return " ".join(overrides)
