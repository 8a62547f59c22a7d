"""Muon (Jordan et al. 2024; arXiv 2502.16982): steps along the matrix sign of the momentum."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hyperp.optim import checks
from hyperp.optim.arguments import LearningRate, OptimizerArguments, takes_arguments
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.linalg.msign import MsignMethod, check_msign, msign
from hyperp.optim.rule import Rate, Rule, State, descend, register_rule

# Length of a step of a (d_out, d_in) matrix over lr, by the names of torch.optim.Muon.
MuonScale = Literal["original", "match_rms_adamw"]


def muon_scale(mode: str, d_out: int, d_in: int) -> float:
    """sqrt(max(1, d_out/d_in)), or 0.2 sqrt(max(d_out, d_in)), which makes entries as large as AdamW's."""
    return math.sqrt(max(1.0, d_out / d_in)) if mode == "original" else 0.2 * math.sqrt(max(d_out, d_in))


@register_rule
@dataclass(frozen=True, kw_only=True)
class MuonRule(Rule):
    """Steps along the matrix sign of the momentum, with decoupled weight decay.

    Args:
        momentum: decay rate of the momentum, which is an average.
        nesterov: look one step ahead along the momentum.
        scale_mode: spectral norm of a step over lr: sqrt(max(1, d_out/d_in)) ("original"), or
            0.2 sqrt(max(d_out, d_in)), which makes entries as large as AdamW's ("match_rms_adamw").
        weight_decay: W <- (1 - lr weight_decay) W before each step.
        msign: how the matrix sign is computed: "newton_schulz", "polar_express" or "svd".
        msign_steps: steps of the polynomial; None is 5 for newton_schulz and 8 for polar_express.
        msign_dtype: dtype of the matrix sign's products, "float32", "bfloat16" or "float64"; None is bfloat16
            on a CUDA device and float32 elsewhere (float64 for float64 parameters).
    """

    name = "muon"

    momentum: float = 0.95
    nesterov: bool = True
    scale_mode: MuonScale = "original"
    weight_decay: float = 0.0
    msign: MsignMethod = "newton_schulz"
    msign_steps: int | None = None
    msign_dtype: str | None = None

    def __post_init__(self) -> None:
        checks.below_one("momentum", self.momentum)
        checks.boolean("nesterov", self.nesterov)
        checks.one_of("scale_mode", self.scale_mode, get_args(MuonScale))
        checks.at_least("weight_decay", self.weight_decay, 0)
        check_msign(self.msign, self.msign_steps, self.msign_dtype)

    def init(self, W: Tensor) -> State:
        """Zero momentum."""
        return {"momentum": torch.zeros_like(W)}

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """W <- (1 - lr weight_decay) W - lr scale msign(momentum)."""
        momentum = torch.lerp(state["momentum"], G, 1 - self.momentum)
        ahead = torch.lerp(G, momentum, self.momentum) if self.nesterov else momentum
        direction = msign(ahead, self.msign, self.msign_steps, self.msign_dtype)
        length = lr * muon_scale(self.scale_mode, *W.shape[-2:])
        return descend(W * (1 - lr * self.weight_decay), direction, length), {"momentum": momentum}


@dataclass(frozen=True)
class MuonArguments(OptimizerArguments, MuonRule):
    """Arguments of `Muon`.

    Args:
        lr: length of a step over its scale (see `scale_mode`): one rate, or one for each role of a module.
    """

    lr: LearningRate = 2e-2


class Muon(GroupedOptimizer):
    """Muon with decoupled weight decay, batched over matrices of equal shape.

    The embeddings, the unembedding and the vectors of a module follow AdamW.
    """

    @takes_arguments(MuonArguments)
    def __init__(self, arguments: MuonArguments) -> None:
        super().__init__(**arguments.for_groups())
