"""What an update rule is: a frozen set of hyperparameters and pure functions of stacked tensors.

A rule works on units. A unit is a matrix (d_out, d_in), or for AdamW a whole tensor; B units of one shape and
dtype are updated at once, so every tensor of the state has B as its first axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

State = dict[str, Tensor]
Rate = float | Tensor  # a tensor is on the device, so that a captured CUDA graph can follow a schedule


class SphereError(ValueError):
    """A matrix that no rescaling puts on a sphere: zero, or with an entry that is not finite."""


@dataclass(frozen=True)
class Rule:
    """Base of all update rules; the fields of a subclass are its hyperparameters, checked when it is made."""

    name: ClassVar[str]
    needs_matrices: ClassVar[bool] = True  # whether a unit has to be a matrix
    skip_on_zero_grad: ClassVar[bool] = False  # whether a unit stays where it is when its gradient is zero

    def init(self, W: Tensor) -> State:
        """State before the first step, for units `W` of shape (B, *unit)."""
        raise NotImplementedError

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """New units, and what changes of the state, from finite gradients `G`; alters no argument."""
        raise NotImplementedError

    def project(self, W: Tensor) -> Tensor:
        """Where training has to start: on the sphere. Most rules start where they are."""
        return W


def descend(W: Tensor, direction: Tensor, length: Rate) -> Tensor:
    """W - length * direction."""
    if isinstance(length, Tensor):
        return W - length * direction
    return torch.add(W, direction, alpha=-length)


RULES: dict[str, type[Rule]] = {}


RuleType = TypeVar("RuleType", bound=type[Rule])


def register_rule(rule: RuleType) -> RuleType:
    """Class decorator: make a rule known to parameter groups under its name."""
    RULES[rule.name] = rule
    return rule


def option_names(rule: type[Rule]) -> list[str]:
    """The hyperparameters of a rule."""
    return [field.name for field in fields(rule)]


def rule_of(rule: type[Rule], arguments: Mapping[str, Any]) -> Rule:
    """The rule whose hyperparameters are among the arguments of a function."""
    return rule(**{name: arguments[name] for name in option_names(rule)})


def make_rule(name: str, options: dict[str, Any]) -> Rule:
    """A rule from its name and hyperparameters; ValueError for one that it does not have."""
    allowed = option_names(RULES[name])
    for key in options:
        if key not in allowed:
            raise ValueError(f"{key} is no option of {name}, whose options are {', '.join(allowed)}")
    return RULES[name](**options)
