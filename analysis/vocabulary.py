"""Names and defaults that every part of the analysis shares; imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, get_args

from hyperp.run_table import CONTEXT

NOT_COVARIATES = (*CONTEXT, "lr", "loss", "seed", "status")  # columns that are never a covariate

State = Literal["bracketed", "edge_low", "edge_high", "too_few_rates", "not_convex"]
CENSORED = ("edge_low", "edge_high")
MethodName = Literal["shared", "two-stage", "pool", "argmin"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
Space = Literal["log", "linear"]

# The configuration group that each of these columns comes from.
CONFIG_GROUPS = {"optim": "optimizer", "parametrization": "parametrization", "schedule": "schedule"}


def option_overrides(context: Mapping[str, str]) -> list[str]:
    """Words that choose what runs were made with, such as optim=muonh; none for what is no option here."""
    return [
        f"{group}={context[column]}"
        for group, column in CONFIG_GROUPS.items()
        if context.get(column) and _is_option(group, context[column])
    ]


def unknown_options(context: Mapping[str, str]) -> list[str]:
    """What runs were made with, such as optimizer=lion, that is no option of hyperp-train."""
    return [
        f"{column}={context[column]}"
        for group, column in CONFIG_GROUPS.items()
        if context.get(column) and not _is_option(group, context[column])
    ]


def _is_option(group: str, name: str) -> bool:
    return (files("hyperp.conf") / group / f"{name}.yaml").is_file()


WINDOW = 1.5  # octaves each side of the vertex
LEVEL = 0.95  # coverage of every interval
# How many times beyond the fitted range of a covariate `recommend` goes before it refuses. Published laws
# carry to about eight to sixteen times their range (arXiv 2603.28743 fits over a range of 16 in tokens, and
# the simulated coverage of the prediction interval is checked to 8); past ten, only the form would speak.
DEFAULT_REACH = 10.0
# A covariate whose largest value is less than this many times its smallest does not vary.
VARYING_RATIO = 1.1
# An exponent of activations in width that counts as none. Where a rule is wrong, theory has 1/2 or 1.
FLAT = 0.1


@dataclass(frozen=True)
class Published:
    """One published exponent of the optimal learning rate, and where it was measured."""

    exponent: float
    domain: str
    source: str


# All for MuonH under HyperP; 0.56 and -0.32 are fits, 0.5 and -0.5 the rules that the authors' code applies.
PUBLISHED_EXPONENTS: dict[str, tuple[Published, ...]] = {
    "tokens": (Published(-0.32, "10B to 166B tokens, 208M parameters, linear decay", "arXiv 2603.28743"),),
    "batch_tokens": (Published(0.56, "256K to 2M tokens a step", "arXiv 2603.28743"),),
    "depth": (Published(-0.5, "8 to 24 blocks, as a rule", "arXiv 2603.28743"),),
    "width": (Published(0.0, "as a rule", "arXiv 2603.28743"),),
}
