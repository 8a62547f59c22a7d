"""Names, defaults and published values that all rooms of the analysis share; imports nothing heavy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

from hyperp.run_table import CONTEXT

NOT_COVARIATES = (*CONTEXT, "lr", "loss", "seed", "status")  # columns that are never a covariate

State = Literal["bracketed", "edge_low", "edge_high", "too_few_rates", "not_convex"]
CENSORED = ("edge_low", "edge_high")
MethodName = Literal["hierarchical", "shared", "two-stage", "pool", "argmin"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
DEFAULT_METHOD: MethodName = "hierarchical"
Space = Literal["log", "linear"]

# The configuration groups of hyperp-train, and the columns of runs.parquet that name their options.
CONFIG_GROUPS = {"optim": "optimizer", "parametrization": "parametrization", "schedule": "schedule"}


def trains_with_hyperp(context: Mapping[str, Any]) -> bool:
    """Whether runs of this context can be of a hyperp sweep, which says all of CONFIG_GROUPS."""
    return all(context.get(column) for column in CONFIG_GROUPS.values())


def option_overrides(context: Mapping[str, str]) -> list[str]:
    """Overrides that choose the context's options, such as optim=muonh, as far as hyperp-train has them."""
    return [
        f"{group}={context[column]}"
        for group, column in CONFIG_GROUPS.items()
        if context.get(column) and _is_option(group, context[column])
    ]


def unknown_options(context: Mapping[str, str]) -> list[str]:
    """The context's values that hyperp-train does not have, such as optimizer=lion."""
    return [
        f"{column}={context[column]}"
        for group, column in CONFIG_GROUPS.items()
        if context.get(column) and not _is_option(group, context[column])
    ]


def _is_option(group: str, name: str) -> bool:
    return (files("hyperp.conf") / group / f"{name}.yaml").is_file()


LN2 = math.log(2.0)  # an octave in natural log
WINDOW = 1.5  # octaves each side of the vertex
LEVEL = 0.95  # coverage of every interval
HUBER_DELTA = 1e-3  # threshold of a loss law's Huber loss on ln L (arXiv 2404.10102)
# The largest factor beyond the fitted range of a covariate at which `recommend` still answers. Published laws
# hold to about 8 to 16 times their range (arXiv 2603.28743 fits over a factor of 16 in tokens), and
# simulations check the coverage of the prediction interval to 8. Beyond 10 the answer would rest on the form
# of the law alone.
DEFAULT_REACH = 10.0
# A covariate varies if its largest value is at least this many times its smallest.
VARYING_RATIO = 1.1
# An exponent of activations in width up to this size counts as zero; a wrong rule gives 1/2 or 1 in theory.
FLAT_SLOPE = 0.1


@dataclass(frozen=True)
class Published:
    """One published exponent of the optimal learning rate, and where it was measured."""

    exponent: float
    domain: str
    source: str


# All are for MuonH under HyperP. 0.56 and -0.32 are fits; the authors' code applies the rules 0.5 and -0.5.
PUBLISHED_EXPONENTS: dict[str, tuple[Published, ...]] = {
    "tokens": (Published(-0.32, "10B to 166B tokens, 208M parameters, linear decay", "arXiv 2603.28743"),),
    "batch_tokens": (Published(0.56, "256K to 2M tokens a step", "arXiv 2603.28743"),),
    "depth": (Published(-0.5, "8 to 24 blocks, as a rule", "arXiv 2603.28743"),),
    "width": (Published(0.0, "as a rule", "arXiv 2603.28743"),),
}
