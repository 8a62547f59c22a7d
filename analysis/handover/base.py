"""What is handed to the trainer of a big run: numbers with their sources, and what they became there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import yaml

from hyperp.analysis.vocabulary import trains_with_hyperp, unknown_options
from hyperp.parametrization import MATRIX_ROLES, OTHER_ROLES, TABLES
from hyperp.schedule import Schedule

if TYPE_CHECKING:
    from hyperp.parametrization import RuleName

SPHERES = ("sso", "muonsphere", "muonh", "adamh")  # optimizers that keep every matrix at its norm
INSIDE = ("vector", "router", "expert")  # groups that most trainers give the rate of hidden matrices


@dataclass(frozen=True)
class Sourced:
    """A number, and where it comes from in one line; not `known` if a factor of it is not."""

    value: float
    source: str
    known: bool = True


@dataclass(frozen=True)
class Setting:
    """One setting as a trainer takes it.

    Args:
        name: the trainer's own name for it: --lr, or section.key.
        value: a number, text, true or false, or a mapping.
        comment: where the value comes from.
        active: false if it has to be written as a comment, since the trainer would misread it.
    """

    name: str
    value: Any
    comment: str
    active: bool = True


@dataclass(frozen=True)
class Translation:
    """The settings of one trainer, and in one line each what it has no setting for."""

    settings: tuple[Setting, ...]
    untranslated: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A recommendation, without the law that made it, as far as a trainer is concerned.

    Args:
        headline: the rate with its interval, in one line.
        context: what the law is for: optimizer, parametrization, schedule and so on; "" where unknown.
        sizes: the target's, by covariate.
        rates: the peak learning rate of each role that is known; `hidden` always is.
        unknown_rates: why those of the other roles are not, else None.
        tuned: what was tuned beside the rate, at its predicted optimum.
        factors: by option (weight_decay, eps) what the parametrization multiplies it by, for each role;
            empty where every factor is 1.
        trainer: of the fitted runs, as of `Law.trainer`; None where the law does not say.
        sequence_length: tokens in a sequence, if the user gave it.
        warnings: what the recommendation warns of.
    """

    headline: str
    context: Mapping[str, str]
    sizes: Mapping[str, int | float]
    rates: Mapping[str, Sourced]
    unknown_rates: str | None = None
    tuned: Mapping[str, Sourced] = field(default_factory=dict)
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trainer: str | None = None
    sequence_length: int | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        batch, length = self.batch_tokens, self.sequence_length
        if length is not None and length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {length}")
        if length is not None and batch is not None and batch.value % length:
            raise ValueError(
                f"sequence_length must divide the batch of {batch.value:.0f} tokens, got {length}; "
                f"{_nearest_multiple(batch.value, length)} would be whole sequences"
            )

    @property
    def optimizer(self) -> str:
        """The optimizer that the law is for, "" if the law does not say."""
        return self.context.get("optimizer", "")

    @property
    def lr(self) -> float:
        """The peak learning rate of the hidden matrices."""
        return self.rates["hidden"].value

    @property
    def tokens(self) -> Sourced | None:
        """The training horizon."""
        return self._size("tokens")

    @property
    def batch_tokens(self) -> Sourced | None:
        """Tokens in one optimizer step."""
        return self._size("batch_tokens")

    @property
    def steps(self) -> Sourced | None:
        """Whole optimizer steps of the horizon."""
        if self.tokens is None or self.batch_tokens is None:
            return None
        text = f"{self.tokens.value:.10g} tokens / {self.batch_tokens.value:.10g} a step, rounded down"
        return Sourced(int(self.tokens.value // self.batch_tokens.value), text)

    @property
    def batch_sequences(self) -> Sourced | None:
        """Sequences in one optimizer step, if the length of a sequence was given."""
        if self.batch_tokens is None or self.sequence_length is None:
            return None
        text = f"{self.batch_tokens.value:.10g} tokens a step / {self.sequence_length} a sequence"
        return Sourced(int(self.batch_tokens.value // self.sequence_length), text)

    @property
    def schedule_name(self) -> str:
        """The schedule of the fitted runs as text, also where nobody named it."""
        return self.context.get("schedule") or "of the fitted runs, which the law does not name"

    @cached_property
    def schedule(self) -> Schedule | None:
        """The schedule with the defaults of its name in hyperp-train; None for one that it does not have."""
        values = _options("schedule", self.context.get("schedule", ""))
        return None if values is None else Schedule(**values)

    @property
    def schedule_source(self) -> str:
        """Where the parts of `schedule` come from."""
        name = self.context.get("schedule", "")
        return (
            f"schedule={name} of the fitted runs; its warm-up and end are its defaults, the law has neither"
        )

    @cached_property
    def optimizer_options(self) -> Mapping[str, Any] | None:
        """What conf/optim says of the law's optimizer, None for one that hyperp-train does not have."""
        values = _options("optim", self.optimizer)
        return None if values is None else values["optim"]

    @property
    def of_hyperp_model(self) -> bool:
        """Whether the law is of runs of hyperp-train, whose model has an unembedding of its own."""
        return self.defaults_known and trains_with_hyperp(self.context) and not unknown_options(self.context)

    @property
    def defaults_known(self) -> bool:
        """Whether the runs were of hyperp-train, so that its defaults stand in for what the law lacks."""
        return self.trainer == "hyperp"

    def foreign_defaults(self) -> list[str]:
        """A line if the defaults of hyperp-train are written as comments, else none."""
        if self.defaults_known or (self.schedule is None and self.optimizer_options is None):
            return []
        whose = (
            "the law does not say which trainer its runs were of"
            if self.trainer is None
            else f"the law's runs were of trainer={self.trainer}"
        )
        return [f"{whose}, so what is a default of hyperp-train is a comment: set what your runs had"]

    def factor(self, option: str, role: str) -> float:
        """What the parametrization multiplies an option (weight_decay, eps) by, for a role."""
        return self.factors.get(option, {}).get(role, 1.0)

    def adam(self) -> tuple[Sourced, Sourced, Sourced] | None:
        """Both betas and epsilon of AdamW for a trainer with one of each; None if hyperp-train has none.

        They are the defaults of hyperp-train, with epsilon as it is for the hidden matrices, or for
        embeddings where the hidden matrices do not follow AdamW.
        """
        found = self.optimizer_options
        if found is None or "adamw" not in found["options"]:
            return None
        values = found["options"]["adamw"]
        numbers = (*values["betas"], values["eps"])
        first, second, eps = (self._by_default(value) for value in numbers)
        role = "hidden" if found["algorithms"]["hidden"] == "adamw" else "embedding"
        return first, second, self._for_role(eps, "eps", role)

    def base_epsilon(self) -> float:
        """AdamW's epsilon before the factor of a group; for optimizers of hyperp-train."""
        assert self.optimizer_options is not None
        return self.optimizer_options["options"]["adamw"]["eps"]

    @property
    def given(self) -> frozenset[str]:
        """The quantities whose values the law or the target has."""
        return frozenset((*self.sizes, *self.tuned))

    def clip(self) -> Sourced | None:
        """The largest norm of the gradient, the default of hyperp-train; None for an optimizer it lacks."""
        found = self.optimizer_options
        return None if found is None else self._by_default(found["clip"])

    def weight_decay(self) -> Sourced | None:
        """The weight decay of the hidden matrices, after the factor of the parametrization."""
        base = self.base_weight_decay()
        return None if base is None else self._for_role(base, "weight_decay", "hidden")

    def base_weight_decay(self) -> Sourced | None:
        """The weight decay that the parametrization multiplies by a factor of each group."""
        if "weight_decay" in self.tuned:
            return self.tuned["weight_decay"]
        if "weight_decay" in self.sizes:
            return Sourced(self.sizes["weight_decay"], "the law's, at which all its slices are")
        if self.optimizer in SPHERES:
            return Sourced(0.0, f"{self.optimizer} keeps every matrix at its norm, so a decay does nothing")
        options = (self.optimizer_options or {"options": {}})["options"].get(self.optimizer, {})
        return self._by_default(options["weight_decay"]) if "weight_decay" in options else None

    def factor_known(self, option: str) -> bool:
        """Whether `factor` says what the parametrization multiplies this option by."""
        table = TABLES.get(cast("RuleName", self.context.get("parametrization", "")), {})
        prefix = {"weight_decay": "weight_decay_", "eps": "epsilon_"}[option]
        scaled = any(name.startswith(prefix) and exponent for name, exponent in table.items())
        return option in self.factors or self.unknown_rates is None or not scaled

    def _for_role(self, base: Sourced, option: str, role: str) -> Sourced:
        rule = f"the factor of parametrization={self.context.get('parametrization', '')}"
        if base.value and not self.factor_known(option):
            return Sourced(
                base.value, f"{base.source}; still without {rule}, which is not known", known=False
            )
        factor = self.factor(option, role)
        if factor == 1.0 or base.value == 0:
            return base
        group = "hidden matrices" if role == "hidden" else f"{role}s"
        source = f"{base.source}; times {factor:.6g}, {rule} for {group}"
        return Sourced(base.value * factor, source, base.known)

    def _by_default(self, value: float) -> Sourced:
        source = f"the default of optim={self.optimizer}; the law does not say what your runs had"
        return Sourced(value, source, self.defaults_known)

    def lr_comment(self) -> str:
        """Where the rate of the hidden matrices comes from, and which groups have the same."""
        same = [role for role, one in self.rates.items() if role != "hidden" and one.value == self.lr]
        comment = f"hidden matrices: {self.rates['hidden'].source}"
        return f"{comment}; {', '.join(same)}: {self.rates[same[0]].source}" if same else comment

    def missing_optimizer(self, trainer: str, has: Collection[str]) -> list[str]:
        """A line if a trainer lacks the law's optimizer, so that rates are written as comments."""
        if self.optimizer in has:
            return []
        if not self.optimizer:
            return [
                "the law names no optimizer, so rates are comments: use them with that of the fitted runs"
            ]
        groups = {} if self.optimizer_options is None else self.optimizer_options["algorithms"]
        other = [
            f"{role} {groups[role]}"
            for role in self.rates
            if groups.get(role, self.optimizer) != self.optimizer
        ]
        named = f"{self.optimizer} ({', '.join(other)})" if groups and other else self.optimizer
        return [
            f"optimizer {named}: {trainer} does not have it, so rates are comments until you have added it"
        ]

    def other_rates(self, *roles: str) -> list[str]:
        """A line for each of these roles whose rate is known and is not that of the hidden matrices."""
        return [
            f"{role}: lr = {self.rates[role].value:.6g} ({self.rates[role].source})"
            for role in roles
            if role in self.rates and self.rates[role].value != self.lr
        ]

    def leftovers(self, *handled: str) -> list[str]:
        """What no trainer here has a setting for: unknown groups, factors, and sizes apart from `handled`."""
        lines = self.foreign_defaults() + ([] if self.unknown_rates is None else [self.unknown_rates])
        for option, factors in self.factors.items():
            parts = ", ".join(f"{role} {factor:.6g}" for role, factor in factors.items())
            name = self.context.get("parametrization", "")
            line = f"{option}: parametrization {name} multiplies it, by group: {parts}"
            lines.append(f"{line}; one value for all groups is that of the group which its comment names")
        rest = {**self.sizes, **{name: one.value for name, one in self.tuned.items()}}
        usual = ("width", "depth", "tokens", "batch_tokens", "weight_decay", "granularity", "sparsity")
        lines += [
            f"{name} = {value:.6g}: no setting of this name"
            for name, value in rest.items()
            if name not in (*usual, *handled)
        ]
        if self.rates.keys() & {"router", "expert"}:
            k, s = (self.sizes.get(name) for name in ("granularity", "sparsity"))
            lines.append(f"experts: granularity {k}, sparsity {s}; the model's own settings decide how many")
        return lines

    def _size(self, name: str) -> Sourced | None:
        if name in self.tuned:
            found = self.tuned[name]
            return Sourced(round(found.value), f"{found.source}, rounded")
        return Sourced(self.sizes[name], "the target") if name in self.sizes else None


def roles_of_target(sizes: Mapping[str, int | float]) -> tuple[str, ...]:
    """The groups of a model of these sizes: routers and experts only where it has experts."""
    experts = any(sizes.get(name, 1) > 1 for name in ("granularity", "sparsity"))
    return (*(role for role in MATRIX_ROLES if experts or role == "hidden"), *OTHER_ROLES)


def _options(group: str, name: str) -> dict[str, Any] | None:
    path = files("hyperp.conf") / group / f"{name}.yaml"
    return yaml.safe_load(path.read_text()) if name and path.is_file() else None


def _nearest_multiple(tokens: float, length: int) -> int:
    return max(round(tokens / length), 1) * length
