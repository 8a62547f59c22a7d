"""AdamW (arXiv 1711.05101), for embeddings, vectors and all tensors that have no better geometry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperp.optim import checks
from hyperp.optim.arguments import LearningRate, OptimizerArguments, takes_arguments
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.rule import Rate, Rule, State, descend, register_rule


def check_adam(betas: tuple[float, float], eps: float) -> None:
    """Raise ValueError unless both betas are in [0, 1) and eps > 0."""
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas must be two decay rates, got {betas!r}")
    checks.below_one("betas[0]", betas[0])
    checks.below_one("betas[1]", betas[1])
    checks.positive("eps", eps)


def adam_state(W: Tensor) -> State:
    """Both moments at zero, and a count of steps for each unit, since a unit can miss steps."""
    return {
        "first": torch.zeros_like(W),
        "second": torch.zeros_like(W),
        "step": torch.zeros(len(W), dtype=torch.float32, device=W.device),
    }


def adam_direction(G: Tensor, state: State, betas: tuple[float, float], eps: float) -> tuple[Tensor, State]:
    """Bias-corrected first moment over the root of the bias-corrected second, and the new moments."""
    first = torch.lerp(state["first"], G, 1 - betas[0])
    second = torch.lerp(state["second"], G * G, 1 - betas[1])
    step = state["step"] + 1
    count = step.to(G.dtype).view(-1, *[1] * (G.ndim - 1))

    def correction(beta: float) -> Tensor:
        """1 - beta^count, without the rounding of a beta near 1."""
        return -torch.expm1(count * math.log(beta)) if beta else torch.ones_like(count)

    denominator = (second / correction(betas[1])).sqrt_().add_(eps)
    direction = (first / correction(betas[0])).div_(denominator)
    return direction, {"first": first, "second": second, "step": step}


@register_rule
@dataclass(frozen=True, kw_only=True)
class AdamWRule(Rule):
    """Adam's direction element by element, with decoupled weight decay.

    Args:
        betas: decay rates of the first and the second moment.
        eps: term in the denominator that keeps the division finite.
        weight_decay: W <- (1 - lr weight_decay) W before each step.
    """

    name, needs_matrices = "adamw", False

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_adam(self.betas, self.eps)
        checks.at_least("weight_decay", self.weight_decay, 0)

    def init(self, W: Tensor) -> State:
        """Zero moments."""
        return adam_state(W)

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """W <- (1 - lr weight_decay) W - lr m / (sqrt(v) + eps)."""
        direction, state = adam_direction(G, state, self.betas, self.eps)
        return descend(W * (1 - lr * self.weight_decay), direction, lr), state


@dataclass(frozen=True)
class AdamWArguments(OptimizerArguments, AdamWRule):
    """Arguments of `AdamW`.

    Args:
        lr: about the change of a single entry in a step: one rate, or one for each role of a module.
    """

    lr: LearningRate = 1e-3


class AdamW(GroupedOptimizer):
    """AdamW with decoupled weight decay, W <- (1 - lr weight_decay) W - lr m / (sqrt(v) + eps).

    It trains every parameter of a module. It updates tensors where they lie, on every rank its own part, so
    that `process_group` changes nothing here.
    """

    @takes_arguments(AdamWArguments)
    def __init__(self, arguments: AdamWArguments) -> None:
        super().__init__(**arguments.for_groups())
