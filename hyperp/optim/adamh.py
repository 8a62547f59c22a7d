"""AdamH: Adam's direction on the Frobenius sphere (arXiv 2606.16899, 2603.28743), for the unembedding."""

from dataclasses import dataclass

from torch import Tensor

from hyperp.optim.adamw import adam_direction, adam_state, check_adam
from hyperp.optim.arguments import LearningRate, OptimizerArguments, takes_arguments
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.rule import Rate, Rule, State, register_rule
from hyperp.optim.sphere import FrobeniusSphere


@register_rule
@dataclass(frozen=True, kw_only=True)
class AdamHRule(Rule):
    """Steps along Adam's direction, each followed by a rescaling to the initial norm.

    Args:
        betas: decay rates of the first and the second moment.
        eps: term in the denominator that keeps the division finite.
    """

    name = "adamh"
    sphere = FrobeniusSphere()
    skip_on_zero_grad = True

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_adam(self.betas, self.eps)

    def init(self, W: Tensor) -> State:
        """Zero moments, and the present norm of the matrix as its radius."""
        return {**adam_state(W), **self.sphere.init(W)}

    def project(self, W: Tensor) -> Tensor:
        """Leave the matrix as it is: the sphere goes through it."""
        return self.sphere.project(W)

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """W <- W - lr radius U/|U|, then rescale to the radius; U is Adam's bias-corrected direction."""
        direction, moments = adam_direction(G, state, self.betas, self.eps)
        W, _ = self.sphere.retract(self.sphere.step(W, direction, lr, state), state, lr)
        return W, moments


@dataclass(frozen=True)
class AdamHArguments(OptimizerArguments, AdamHRule):
    """Arguments of `AdamH`.

    Args:
        lr: length of a step over the radius: one rate, or one for each role of a module.
    """

    lr: LearningRate = 1e-2


class AdamH(GroupedOptimizer):
    """Adam's direction with every matrix held at its initial Frobenius norm; no weight decay.

    The embeddings and vectors of a module follow AdamW.
    """

    @takes_arguments(AdamHArguments)
    def __init__(self, arguments: AdamHArguments) -> None:
        super().__init__(**arguments.for_groups())
