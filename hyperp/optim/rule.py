"""What an update rule is: a frozen set of hyperparameters and pure functions of stacked tensors.

A rule works on units. A unit is one matrix (d_out, d_in), or for AdamW one whole tensor. B units of the same
shape and dtype are updated at once, so that every tensor of the state has B as its first axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

State = dict[str, Tensor]
Rate = float | Tensor  # a tensor lies on the device, so that a captured CUDA graph can follow a schedule


class SphereError(ValueError):
    """A matrix that no rescaling puts on a sphere: it is zero, or has an entry that is not finite."""


@dataclass(frozen=True)
class Rule:
    """Base of all update rules. The fields of a subclass are its hyperparameters, checked on construction."""

    name: ClassVar[str]
    needs_matrices: ClassVar[bool] = True  # whether every unit has to be a matrix
    skip_on_zero_grad: ClassVar[bool] = False  # whether a unit with a zero gradient stays where it is

    def init(self, W: Tensor) -> State:
        """State before the first step, for units `W` of shape (B, *unit)."""
        raise NotImplementedError

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """New units, and the entries of the state that change; gradients `G` are finite, arguments stay."""
        raise NotImplementedError

    def project(self, W: Tensor) -> Tensor:
        """Move the units to where training has to start, on the sphere. By default they stay."""
        return W


def descend(W: Tensor, direction: Tensor, length: Rate) -> Tensor:
    """W - length * direction."""
    if isinstance(length, Tensor):
        return W - length * direction
    return torch.add(W, direction, alpha=-length)


RULES: dict[str, type[Rule]] = {}


RuleType = TypeVar("RuleType", bound=type[Rule])


def register_rule(rule: RuleType) -> RuleType:
    """Class decorator that makes a rule known to parameter groups under its name."""
    RULES[rule.name] = rule
    return rule


def option_names(rule: type[Rule]) -> list[str]:
    """The names of a rule's hyperparameters."""
    return [field.name for field in fields(rule)]


def make_rule(name: str, options: Mapping[str, Any]) -> Rule:
    """A rule from its name and hyperparameters; ValueError for a hyperparameter that it does not have."""
    allowed = option_names(RULES[name])
    for key in options:
        if key not in allowed:
            raise ValueError(f"{key} is no option of {name}, whose options are {', '.join(allowed)}")
    return RULES[name](**options)


def rule_of_group(group: Mapping[str, Any]) -> Rule:
    """The rule of a parameter group that an optimizer holds."""
    names = option_names(RULES[group["algorithm"]])
    return make_rule(group["algorithm"], {name: group[name] for name in names})
