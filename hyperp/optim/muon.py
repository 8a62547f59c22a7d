"""Muon (Jordan et al. 2024; arXiv 2502.16982): steps along the matrix sign of the momentum."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from hyperp.optim import checks
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.groups import resolve
from hyperp.optim.linalg.msign import MsignMethod, check_msign, msign
from hyperp.optim.rule import Rate, Rule, State, descend, register_rule, rule_of
from hyperp.roles import Role

# Length of a step of a (d_out, d_in) matrix over lr: the names are those of torch.optim.Muon.
MuonScale = Literal["original", "match_rms_adamw"]


def muon_scale(mode: str, d_out: int, d_in: int) -> float:
    """sqrt(max(1, d_out/d_in)), or 0.2 sqrt(max(d_out, d_in)), with entries as large as AdamW's."""
    return math.sqrt(max(1.0, d_out / d_in)) if mode == "original" else 0.2 * math.sqrt(max(d_out, d_in))


@register_rule
@dataclass(frozen=True)
class MuonRule(Rule):
    """Momentum, an average; the length of a step; decoupled weight decay; how the matrix sign is computed."""

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


class Muon(GroupedOptimizer):
    """Muon with decoupled weight decay, batched over matrices of equal shape.

    `params` is a module, whose embeddings, unembedding and vectors then follow AdamW, or what any torch
    optimizer takes. `lr` is one rate, or one for each role of a module. `options` reaches the other
    algorithms: {"adamw": {"weight_decay": 0.1}}. `unembedding` marks the output modules of a foreign model.
    `maximize` and `process_group` are those of `GroupedOptimizer`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Mapping[Role, float] = 2e-2,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        scale_mode: MuonScale = "original",
        weight_decay: float = 0.0,
        msign: MsignMethod = "newton_schulz",
        msign_steps: int | None = None,
        msign_dtype: str | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        unembedding: Iterable[nn.Module] = (),
        maximize: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        rule = rule_of(MuonRule, locals())
        resolved = resolve(params, lr, rule, options, unembedding)
        super().__init__(**resolved, maximize=maximize, process_group=process_group)
