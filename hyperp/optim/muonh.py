"""MuonH: Muon's direction on the Frobenius sphere (arXiv 2606.16899, 2603.28743)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from hyperp.optim import checks
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.groups import resolve
from hyperp.optim.linalg.msign import MsignMethod, check_msign, msign
from hyperp.optim.rule import Rate, Rule, State, register_rule, rule_of
from hyperp.optim.sphere import FrobeniusSphere
from hyperp.roles import Role


@register_rule
@dataclass(frozen=True)
class MuonHRule(Rule):
    """Momentum, a sum and not an average, and how the matrix sign is computed (see `msign`)."""

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
        """Zero momentum, and the norm the matrix has now as its radius."""
        return {"momentum": torch.zeros_like(W), **self.sphere.init(W)}

    def project(self, W: Tensor) -> Tensor:
        """As it is: the sphere goes through it."""
        return self.sphere.project(W)

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """W <- W - lr radius U/|U|, then rescaled to the radius; U is the matrix sign of the momentum."""
        momentum = torch.add(G, state["momentum"], alpha=self.momentum)
        ahead = torch.add(G, momentum, alpha=self.momentum) if self.nesterov else momentum
        direction = msign(ahead, self.msign, self.msign_steps, self.msign_dtype)
        W, _ = self.sphere.retract(self.sphere.step(W, direction, lr, state), state, lr)
        return W, {"momentum": momentum}


class MuonH(GroupedOptimizer):
    """Muon's direction with every matrix held at the Frobenius norm it started with; no weight decay.

    `params` is a module, whose unembedding then follows AdamH and whose embeddings and vectors AdamW, or what
    any torch optimizer takes. `lr` is the length of a step over the radius: one rate, or one for each role of
    a module. `options` reaches the other algorithms: {"adamw": {"weight_decay": 0.1}}. `unembedding` marks
    the output modules of a foreign model. `maximize` and `process_group` are those of `GroupedOptimizer`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Mapping[Role, float] = 1e-2,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        msign: MsignMethod = "newton_schulz",
        msign_steps: int | None = None,
        msign_dtype: str | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        unembedding: Iterable[nn.Module] = (),
        maximize: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        rule = rule_of(MuonHRule, locals())
        resolved = resolve(params, lr, rule, options, unembedding)
        super().__init__(**resolved, maximize=maximize, process_group=process_group)
