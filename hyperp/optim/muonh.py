"""MuonH: Muon's direction on the Frobenius sphere (arXiv 2606.16899, 2603.28743)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperp.optim import checks
from hyperp.optim.arguments import LearningRate, OptimizerArguments, takes_arguments
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.linalg.msign import MsignMethod, check_msign, msign
from hyperp.optim.rule import Rate, Rule, State, register_rule
from hyperp.optim.sphere import FrobeniusSphere


@register_rule
@dataclass(frozen=True, kw_only=True)
class MuonHRule(Rule):
    """Steps along the matrix sign of the momentum, each followed by a rescaling to the initial norm.

    Args:
        momentum: decay rate of the momentum, which is a sum and not an average.
        nesterov: look one step ahead along the momentum.
        msign: how the matrix sign is computed: "newton_schulz", "polar_express" or "svd".
        msign_steps: steps of the polynomial; None is 5 for newton_schulz and 8 for polar_express.
        msign_dtype: dtype of the matrix sign's products, "float32", "bfloat16" or "float64"; None is bfloat16
            on a CUDA device and float32 elsewhere (float64 for float64 parameters).
    """

    name = "muonh"
    sphere = FrobeniusSphere()
    skip_on_zero_grad = True

    momentum: float = 0.95
    nesterov: bool = True
    msign: MsignMethod = "newton_schulz"
    msign_steps: int | None = None
    msign_dtype: str | None = None

    def __post_init__(self) -> None:
        checks.below_one("momentum", self.momentum)
        checks.boolean("nesterov", self.nesterov)
        check_msign(self.msign, self.msign_steps, self.msign_dtype)

    def init(self, W: Tensor) -> State:
        """Zero momentum, and the present norm of the matrix as its radius."""
        return {"momentum": torch.zeros_like(W), **self.sphere.init(W)}

    def project(self, W: Tensor) -> Tensor:
        """Leave the matrix as it is: the sphere goes through it."""
        return self.sphere.project(W)

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """W <- W - lr radius U/|U|, then rescale to the radius; U is the matrix sign of the momentum."""
        momentum = torch.add(G, state["momentum"], alpha=self.momentum)
        ahead = torch.add(G, momentum, alpha=self.momentum) if self.nesterov else momentum
        direction = msign(ahead, self.msign, self.msign_steps, self.msign_dtype)
        W, _ = self.sphere.retract(self.sphere.step(W, direction, lr, state), state, lr)
        return W, {"momentum": momentum}


@dataclass(frozen=True)
class MuonHArguments(OptimizerArguments, MuonHRule):
    """Arguments of `MuonH`.

    Args:
        lr: length of a step over the radius: one rate, or one for each role of a module.
    """

    lr: LearningRate = 1e-2


class MuonH(GroupedOptimizer):
    """Muon's direction with every matrix held at its initial Frobenius norm; no weight decay.

    The unembedding of a module follows AdamH, its embeddings and vectors follow AdamW.
    """

    @takes_arguments(MuonHArguments)
    def __init__(self, arguments: MuonHArguments) -> None:
        super().__init__(**arguments.for_groups())
