"""What the doctor knows of a planned run, and how its numbers and words are looked up in a configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from hyperp.analysis.registry.target import OptimizerName, ParametrizationName, ScheduleName, Target
from hyperp.validation import NonNegative, Positive, Strict


class RunConfig(Strict):
    """A planned run as its trainer would do it; what the configuration does not say is None or absent.

    Attributes:
        trainer: whose configuration it is.
        target: its sizes.
        steps: optimizer steps.
        optimizer: of the hidden matrices.
        embedding_optimizer: of the embedding.
        schedule: its shape.
        scheduler: the class that sets the rates, as its library calls it, such as OneCycleLR.
        base_width: the width at which the parametrization changes nothing.
        rates: the peak rate of each group of parameters, such as hidden or embedding, after every factor.
        floors: the rate, not the share, at which the schedule of a group ends.
        weight_decay: of each group.
        warmup_steps, decay_steps: steps until the peak, and until the end of the schedule.
        tied_embeddings: whether embedding and unembedding are one matrix.
        unread: what could not be worked out, and why, a line each.
    """

    trainer: str
    target: Target
    steps: Positive | None = None
    optimizer: OptimizerName | None = None
    embedding_optimizer: OptimizerName | None = None
    schedule: ScheduleName | None = None
    scheduler: str | None = None
    parametrization: ParametrizationName | None = None
    base_width: Positive | None = None
    rates: dict[str, Positive] = Field(default_factory=dict)
    floors: dict[str, NonNegative] = Field(default_factory=dict)
    weight_decay: dict[str, NonNegative] = Field(default_factory=dict)
    warmup_steps: NonNegative | None = None
    decay_steps: Positive | None = None
    tied_embeddings: bool | None = None
    unread: list[str] = Field(default_factory=list)

    @property
    def known_steps(self) -> float | None:
        """`steps`, or tokens over batch_tokens."""
        if self.steps is not None:
            return self.steps
        if self.target.tokens is None or self.target.batch_tokens is None:
            return None
        return self.target.tokens / self.target.batch_tokens

    @property
    def width_factor(self) -> float | None:
        """The width over `base_width`."""
        if self.target.width is None or self.base_width is None:
            return None
        return self.target.width / self.base_width


@dataclass
class Reading:
    """Looks values up in a configuration, and notes what it could not use.

    Args:
        source: what errors and notes call the configuration.
        values: its values by key; those of a command line are texts.
        unread: notes, a line each.
    """

    source: str
    values: Mapping[str, Any]
    unread: list[str] = field(default_factory=list)

    def number(self, *keys: str, default: float | None = None) -> float | None:
        """The first of these keys that is there as a number; a value that is none is noted and skipped."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            try:
                found = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                found = math.nan
            if math.isfinite(found):
                return found
            self.unread.append(f"{key}: {value!r} is no number")
        return default

    def positive(self, *keys: str, default: float | None = None) -> float | None:
        """A number above 0; trainers write -1 or 0 for what they choose themselves."""
        found = self.number(*keys, default=default)
        return found if found is not None and found > 0 else None

    def above_zero(self, key: str, default: float) -> float:
        """The number at `key`, or the trainer's default; ValueError for one that is not positive."""
        found = self.number(key, default=default)
        if found is None or found <= 0:
            raise ValueError(f"{self.source}: {key} must be positive, got {found}")
        return found

    def word(self, key: str, known: Mapping[str, str], default: str | None = None) -> Any:
        """What the text at `key` is called here; a text that is not in `known` is noted."""
        text = self.values.get(key, default)
        if text is None:
            return None
        found = known.get(str(text).lower())
        if found is None:
            self.unread.append(f"{key}: {text!r} is not known here")
        return found

    def flag(self, key: str) -> bool:
        """Whether a switch is set."""
        return str(self.values.get(key, False)).lower() in ("true", "1", "yes")

    def missing(self, what: str, why: str) -> None:
        """Note that `what` is not known."""
        self.unread.append(f"{what}: {why}")


def present(**values: float | None) -> dict[str, float]:
    """The values that are known."""
    return {name: value for name, value in values.items() if value is not None}
