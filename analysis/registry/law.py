"""A published law of the learning rate as a record, and its value at a target."""

import math
from functools import lru_cache
from importlib.resources import files
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from hyperp.analysis.registry.target import (
    QUANTITIES,
    OptimizerName,
    ParametrizationName,
    Reference,
    ScheduleName,
    Target,
)
from hyperp.validation import Finite, Positive, Strict, invalid_field


class Quantity(Strict):
    """How a law depends on one quantity, and where it was measured.

    Attributes:
        exponent: of the rate; 0 if the law was measured over this quantity and does not contain it.
        unit: what the source counts in.
        divide_by: how many of our units (tokens, tokens a step, blocks, ...) make one of the source's.
        low, high: range of the runs behind the law, in our units; None where the source gives none.
    """

    exponent: Finite
    unit: str
    divide_by: Positive = 1.0
    low: Positive | None = None
    high: Positive | None = None

    def extrapolation(self, value: float) -> float | None:
        """How many times beyond the range `value` lies, 1 inside, None without a published range."""
        if self.low is None and self.high is None:
            return None
        below = self.low / value if self.low is not None else 0.0
        above = value / self.high if self.high is not None else 0.0
        return max(1.0, below, above)


class OwnBatch(Strict):
    """The batch at which a law holds: coefficient quantity^exponent, in tokens a step."""

    coefficient: Positive
    quantity: str
    exponent: Finite

    def evaluate(self, target: Target) -> float | None:
        """Tokens a step at the target, None where its quantity is not known."""
        value = target.measure(self.quantity)
        return None if value is None else self.coefficient * value**self.exponent


class PublishedLaw(Strict):
    """What somebody published about the best learning rate.

    Attributes:
        id: the name of its file.
        kind: "law" gives a rate; "rule" scales the rate of a reference run; "timescale" gives
            B/(lr weight_decay D), the time over which AdamW averages its updates as a fraction of the run.
        form: the formula as the source writes it.
        optimizer: whose rate it is.
        schedule: of the runs behind it; None where the source leaves it open.
        parametrization: how their rates and initialisation depend on width and depth; None if it is the
            source's own.
        group: the parameters that have this rate.
        moment: "peak" is the largest rate of the schedule.
        convention: what a rate of 1 does to a matrix.
        conversion: the exact factor by which the value differs from the source's own number, if it does.
        coefficient: the value where every quantity is one of its units; None of a rule.
        cap: the largest rate that the law gives.
        batch: the batch that the source tuned together with the rate, if it did.
        runs: how many runs it was fitted to.
        error: what the source says about its error.
        sources: where the coefficients, units and ranges stand.
    """

    id: str
    title: str
    kind: Literal["law", "rule", "timescale"] = "law"
    form: str
    optimizer: OptimizerName
    schedule: ScheduleName | None = None
    parametrization: ParametrizationName | None = None
    group: str = "hidden matrices"
    moment: Literal["peak", "final"] = "peak"
    convention: str
    conversion: str | None = None
    coefficient: Positive | None = None
    cap: Positive | None = None
    batch: OwnBatch | None = None
    quantities: dict[str, Quantity]
    runs: int | None = None
    error: str | None = None
    sources: list[str] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.quantities if name not in QUANTITIES]
        if unknown:
            raise ValueError(f"quantities must be of {', '.join(QUANTITIES)}, got {unknown[0]}")
        if (self.kind == "rule") != (self.coefficient is None):
            raise ValueError(
                f"coefficient must be given except for a rule, got {self.coefficient} of a {self.kind}"
            )
        return self

    @property
    def exponents(self) -> dict[str, float]:
        """The exponents of the quantities that the law contains."""
        return {name: one.exponent for name, one in self.quantities.items() if one.exponent}

    def missing(self, target: Target) -> list[str]:
        """What has to be known of the target before the law can be evaluated."""
        absent = [name for name in self.exponents if target.measure(name) is None]
        needed = [part for name in absent for part in QUANTITIES[name]]
        return [part for part in dict.fromkeys(needed) if getattr(target, part) is None]

    def evaluate(self, target: Target, reference: Reference | None = None) -> float:
        """The law's value: a learning rate, or of a timescale a fraction of the run.

        Raises:
            ValueError: the target or the reference lacks something, or a rule has no reference.
        """
        if self.kind == "rule" and reference is None:
            raise ValueError(f"reference must be given for {self.id}, which scales the rate of one run")
        if missing := self.missing(target):
            raise ValueError(f"{', '.join(missing)} must be given for {self.id}")
        start = reference.lr if reference is not None and self.coefficient is None else self.coefficient
        log_value = math.log(float(start or math.nan))
        for name, exponent in self.exponents.items():
            unit = self.quantities[name].divide_by
            if reference is not None and self.kind == "rule":
                unit = reference.require(name, self.id)
            log_value += exponent * math.log(float(target.measure(name) or math.nan) / unit)
        value = math.exp(log_value)
        return value if self.cap is None else min(value, self.cap)


def load_published(text: str, name: str) -> PublishedLaw:
    """One law from the text of its YAML file. Raises ValueError for a field that is not as it must be."""
    try:
        return PublishedLaw.model_validate({"id": name, **yaml.safe_load(text)})
    except ValidationError as error:
        raise ValueError(invalid_field(error, name)) from None


@lru_cache(maxsize=1)
def published_laws() -> tuple[PublishedLaw, ...]:
    """All laws of the registry, in the order of their ids."""
    folder = files("hyperp.analysis.registry") / "laws"
    found = sorted((one for one in folder.iterdir() if one.name.endswith(".yaml")), key=lambda one: one.name)
    return tuple(
        load_published(one.read_text(encoding="utf-8"), one.name.removesuffix(".yaml")) for one in found
    )
