"""The run that is asked about: its sizes, what follows from them, and the words for everything else."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal, get_args

from pydantic import ValidationError

from hyperp.validation import Positive, Strict, invalid_field

OptimizerName = Literal["adamw", "adamh", "muon", "muonh", "muonsphere", "sso", "scion"]
ScheduleName = Literal["linear", "cosine", "constant", "wsd", "multi-step", "inverse-square-root"]
ParametrizationName = Literal["standard", "mup", "mup++", "completep", "completedp", "hyperp", "raw"]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
PARAMETRIZATIONS: tuple[str, ...] = get_args(ParametrizationName)
# What can be said of a run in words, with the words that are known.
WORDS: Mapping[str, tuple[str, ...]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "parametrization": PARAMETRIZATIONS,
}
# Weights of these keep their norm, so that decay changes nothing to first order.
SPHERE_OPTIMIZERS = ("adamh", "muonh", "muonsphere", "sso")


class Target(Strict):
    """The run that is asked about; what is None is not known.

    Attributes:
        tokens: training horizon, in tokens.
        batch_tokens: tokens in one optimizer step.
        width: d_model.
        depth: number of blocks.
        params: parameters without embeddings, the active ones of a mixture of experts.
        sequence_length: tokens in one sequence.
    """

    tokens: Positive | None = None
    batch_tokens: Positive | None = None
    width: Positive | None = None
    depth: Positive | None = None
    params: Positive | None = None
    sequence_length: Positive | None = None

    def measure(self, quantity: str) -> float | None:
        """The target in one of QUANTITIES, None where what it needs is not known."""
        return DERIVED[quantity](self) if quantity in DERIVED else getattr(self, quantity)

    @property
    def parameters(self) -> float | None:
        """`params`, or 12 depth width^2, which is what a dense block with a hidden width of 4 d_model has."""
        if self.params is not None:
            return self.params
        if self.width is None or self.depth is None:
            return None
        return 12 * self.depth * self.width**2

    @property
    def compute(self) -> float | None:
        """FLOPs of the run without embeddings: (6 N + 12 depth width sequence_length) tokens.

        With N = 12 depth width^2 this is C = M D of arXiv 2401.02954.
        """
        known = (self.parameters, self.tokens, self.depth, self.width, self.sequence_length)
        if any(value is None for value in known):
            return None
        parameters, tokens, depth, width, sequence = (float(value) for value in known if value is not None)
        return (6 * parameters + 12 * depth * width * sequence) * tokens

    @property
    def tokens_per_parameter(self) -> float | None:
        """Tokens over `parameters`."""
        if self.parameters is None or self.tokens is None:
            return None
        return self.tokens / self.parameters


DERIVED: Mapping[str, Callable[[Target], float | None]] = {
    "params": lambda target: target.parameters,
    "compute": lambda target: target.compute,
    "tokens_per_parameter": lambda target: target.tokens_per_parameter,
}
# What each quantity of a law needs to be known of the target.
QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "tokens": ("tokens",),
    "batch_tokens": ("batch_tokens",),
    "width": ("width",),
    "depth": ("depth",),
    "params": ("params",),
    "compute": ("tokens", "width", "depth", "sequence_length"),
    "tokens_per_parameter": ("tokens", "params"),
}


class Reference(Strict):
    """A run whose best rate is known, from which a rule starts: its rate and as many sizes as are known."""

    lr: Positive
    target: Target

    def require(self, quantity: str, law: str) -> float:
        """The reference in one quantity; ValueError names the law that needs it."""
        value = self.target.measure(quantity)
        if value is None:
            raise ValueError(f"reference must give {' and '.join(QUANTITIES[quantity])} for {law}")
        return value


def require_known(field: str, value: str, known: Sequence[str]) -> None:
    """Reject a value that is not in `known`, with the closest one that is."""
    if value not in known:
        close = get_close_matches(value, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{field} must be one of {', '.join(known)}, got {value!r}{hint}")


def read_target(sizes: Mapping[str, float], strict: bool = True) -> Target:
    """A target from sizes by name; one that is not a size of a target is an error if `strict`, else left out.

    Raises:
        ValueError: an unknown size, or one that is not a positive number.
    """
    known = list(Target.model_fields)
    for name in sizes if strict else ():
        require_known("size", name, known)
    try:
        return Target(**{name: value for name, value in sizes.items() if name in known})
    except ValidationError as error:
        raise ValueError(invalid_field(error)) from None


def read_reference(given: Mapping[str, float]) -> Reference:
    """A reference run from its sizes and its rate. Raises ValueError as `read_target` does, or without lr."""
    sizes = {name: value for name, value in given.items() if name != "lr"}
    try:
        return Reference.model_validate(
            {**({"lr": given["lr"]} if "lr" in given else {}), "target": read_target(sizes)}
        )
    except ValidationError as error:
        raise ValueError(invalid_field(error, "reference")) from None
