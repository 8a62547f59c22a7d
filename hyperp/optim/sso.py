"""SSO and MuonSphere: Muon's direction on the spectral sphere (arXiv 2601.08393).

SSO takes the steepest step that is tangent to the sphere; MuonSphere leaves the constraint out of the
direction.
"""

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
from hyperp.optim.linalg.msign import MsignMethod, check_msign, msign, unit_frobenius
from hyperp.optim.linalg.spectral import BLOCK
from hyperp.optim.linalg.tangent import COLD_SLOPE, tangent_step
from hyperp.optim.muon import muon_scale
from hyperp.optim.rule import Rate, Rule, State, register_rule, rule_of
from hyperp.optim.sphere import RadiusMode, Retraction, SpectralSphere
from hyperp.roles import Role

ScaleMode = Literal["radius", "aspect", "original", "match_rms_adamw"]


@register_rule
@dataclass(frozen=True)
class MuonSphereRule(Rule):
    """Momentum, an average; radius and length of a step; how the matrix sign and the top pair are computed.

    radius_mode: largest singular value over `radius_factor`: sqrt(d_out/d_in) ("aspect") or 1 ("unit").
    scale_mode: length of a step over lr and `radius_factor`: as the radius, or by one of the published rules.
    retraction: rescale to the radius every step ("hard"), or go towards it by 0.05 lr ("dynamic").
    block: right singular vectors kept between steps for each matrix.
    """

    name = "muonsphere"
    skip_on_zero_grad = True

    momentum: float = 0.9
    nesterov: bool = True
    radius_factor: float = 1.0
    radius_mode: RadiusMode = "aspect"
    scale_mode: ScaleMode = "radius"
    retraction: Retraction = "hard"
    msign: MsignMethod = "polar_express"
    msign_steps: int | None = None
    msign_dtype: str | None = None
    block: int = BLOCK

    def __post_init__(self) -> None:
        checks.below_one("momentum", self.momentum)
        checks.boolean("nesterov", self.nesterov)
        checks.positive("radius_factor", self.radius_factor)
        checks.one_of("radius_mode", self.radius_mode, get_args(RadiusMode))
        checks.one_of("scale_mode", self.scale_mode, get_args(ScaleMode))
        checks.one_of("retraction", self.retraction, get_args(Retraction))
        checks.whole_number("block", self.block, 1)
        check_msign(self.msign, self.msign_steps, self.msign_dtype)

    @property
    def sphere(self) -> SpectralSphere:
        """Where the matrices live."""
        return SpectralSphere(self.radius_factor, self.radius_mode, self.retraction, self.block)

    def length(self, d_out: int, d_in: int) -> float:
        """Spectral norm of a step at lr = 1."""
        if self.scale_mode == "radius":
            return self.sphere.radius(d_out, d_in)
        if self.scale_mode == "aspect":
            return self.radius_factor * math.sqrt(d_out / d_in)
        return self.radius_factor * muon_scale(self.scale_mode, d_out, d_in)

    def init(self, W: Tensor) -> State:
        """Zero momentum, and the top right singular vectors."""
        return {"momentum": torch.zeros_like(W), **self.sphere.init(W)}

    def project(self, W: Tensor) -> Tensor:
        """Rescale to the radius."""
        return self.sphere.project(W)

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """Retract W to the sphere, then W <- W - lr length Phi."""
        W, place = self.sphere.retract(W, state, lr)
        momentum = torch.lerp(state["momentum"], G, 1 - self.momentum)
        ahead = torch.lerp(G, momentum, self.momentum) if self.nesterov else momentum
        direction, learnt = self.direction(ahead, place["u"], place["v"], state)
        shape = W.shape[-2:]
        W = self.sphere.step(W, direction, lr * self.length(*shape) / self.sphere.radius(*shape), state)
        return W, {"momentum": momentum, "basis": place["basis"], **learnt}

    def direction(self, M: Tensor, u: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:  # noqa: ARG002
        """Steepest step of unit spectral norm, and what changes of the state."""
        return self.sign(M), {}

    def sign(self, M: Tensor) -> Tensor:
        """The matrix sign, as configured."""
        return msign(M, self.msign, self.msign_steps, self.msign_dtype)


@register_rule
@dataclass(frozen=True)
class SSORule(MuonSphereRule):
    """Those of MuonSphere, and the matrix signs that the tangent step may take (see `tangent`)."""

    name = "sso"

    evaluations: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole_number("evaluations", self.evaluations, 1)

    def init(self, W: Tensor) -> State:
        """Those of MuonSphere, and how steeply h rises, which every step learns."""
        return {**super().init(W), "slope": torch.full_like(W[:, 0, 0], COLD_SLOPE)}

    def direction(self, M: Tensor, u: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        """Steepest step tangent to the sphere."""
        step = tangent_step(unit_frobenius(M), u, v, self.sign, state["slope"], self.evaluations)
        return step.phi_Bmn, {"slope": step.slope_B}


class MuonSphere(GroupedOptimizer):
    """Muon's direction with every matrix brought back to the spectral sphere of radius c sqrt(d_out/d_in)
    each step.

    `params` is a module, whose embeddings, unembedding and vectors then follow AdamW, or what any torch
    optimizer takes. `lr` is the length of a step over the radius: one rate, or one for each role of a module.
    `options` reaches the other algorithms: {"adamw": {"weight_decay": 0.1}}. `unembedding` marks the output
    modules of a foreign model. `maximize` and `process_group` are those of `GroupedOptimizer`. The other
    arguments are those of `MuonSphereRule`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Mapping[Role, float] = 5e-3,
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        radius_factor: float = 1.0,
        radius_mode: RadiusMode = "aspect",
        scale_mode: ScaleMode = "radius",
        retraction: Retraction = "hard",
        msign: MsignMethod = "polar_express",
        msign_steps: int | None = None,
        msign_dtype: str | None = None,
        block: int = BLOCK,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        unembedding: Iterable[nn.Module] = (),
        maximize: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        rule = rule_of(MuonSphereRule, locals())
        resolved = resolve(params, lr, rule, options, unembedding)
        super().__init__(**resolved, maximize=maximize, process_group=process_group)


class SSO(GroupedOptimizer):
    """The spectral sphere optimizer: the steepest step tangent to the sphere of radius c sqrt(d_out/d_in).

    What comes before `momentum` and after `block` is as for `MuonSphere`; the other arguments are those of
    `SSORule`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Mapping[Role, float] = 5e-3,
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        radius_factor: float = 1.0,
        radius_mode: RadiusMode = "aspect",
        scale_mode: ScaleMode = "radius",
        retraction: Retraction = "hard",
        evaluations: int = 2,
        msign: MsignMethod = "polar_express",
        msign_steps: int | None = None,
        msign_dtype: str | None = None,
        block: int = BLOCK,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        unembedding: Iterable[nn.Module] = (),
        maximize: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        rule = rule_of(SSORule, locals())
        resolved = resolve(params, lr, rule, options, unembedding)
        super().__init__(**resolved, maximize=maximize, process_group=process_group)
