"""What a fitted law consists of besides its slices, however it was fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperp.analysis.law.hierarchy.record import PosteriorRecord
from hyperp.analysis.law.records import CurvatureTest, FixedTest, LeftOut
from hyperp.analysis.law.schema import Coefficients, PriorRecord


@dataclass(frozen=True)
class LawParts:
    """The numbers of a law, fitted by the hierarchical model or by regression.

    Attributes:
        own, also: the coefficients for the rate, and for what was tuned beside it.
        middle: for each of them, lr first, the interval of the law itself at the middle of its slices.
        fixed_tests, curvature_tests, leave_one_out, priors, without_priors, rate_sd: see `schema.Law`.
        shares: the share of the information of the slices, in their order; empty where there is none.
        warnings: slices far from the law, and bends that the data ask for.
    """

    own: Coefficients
    also: Mapping[str, Coefficients]
    middle: Mapping[str, tuple[float, float]]
    fixed_tests: dict[str, FixedTest]
    curvature_tests: dict[str, CurvatureTest]
    leave_one_out: list[LeftOut]
    warnings: list[str]
    shares: list[float] = field(default_factory=list)
    priors: dict[str, PriorRecord] = field(default_factory=dict)
    without_priors: PosteriorRecord | None = None
    rate_sd: float | None = None
