"""SSO and MuonSphere: Muon's direction on the spectral sphere (arXiv 2601.08393).

SSO takes the steepest step that is tangent to the sphere. MuonSphere leaves that constraint out.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hyperp.optim import checks
from hyperp.optim.arguments import LearningRate, OptimizerArguments, takes_arguments
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.linalg.msign import MsignMethod, check_msign, msign, unit_frobenius
from hyperp.optim.linalg.spectral import BLOCK
from hyperp.optim.linalg.tangent import COLD_SLOPE, tangent_step
from hyperp.optim.muon import muon_scale
from hyperp.optim.rule import Rate, Rule, State, register_rule
from hyperp.optim.sphere import RadiusMode, Retraction, SpectralSphere

ScaleMode = Literal["radius", "aspect", "original", "match_rms_adamw"]


@register_rule
@dataclass(frozen=True, kw_only=True)
class MuonSphereRule(Rule):
    """Retract to the spectral sphere, then step along the matrix sign of the momentum.

    Args:
        momentum: decay rate of the momentum, which is an average.
        nesterov: look one step ahead along the momentum.
        radius_factor: c, a factor on the radius and on the length of a step alike.
        radius_mode: largest singular value of a matrix over `radius_factor`: sqrt(d_out/d_in) ("aspect") or
            1 ("unit").
        scale_mode: spectral norm of a step over lr and `radius_factor`: that of the radius ("radius"),
            sqrt(d_out/d_in) ("aspect"), or as in `Muon` ("original", "match_rms_adamw").
        retraction: rescale to the radius every step ("hard"), or go towards it by 0.05 lr ("dynamic").
        msign: how the matrix sign is computed: "newton_schulz", "polar_express" or "svd".
        msign_steps: steps of the polynomial; None is 5 for newton_schulz and 8 for polar_express.
        msign_dtype: dtype of the matrix sign's products, "float32", "bfloat16" or "float64"; None is bfloat16
            on a CUDA device and float32 elsewhere (float64 for float64 parameters).
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
        """The sphere that the matrices lie on."""
        return SpectralSphere(self.radius_factor, self.radius_mode, self.retraction, self.block)

    def step_length(self, d_out: int, d_in: int) -> float:
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
        """Retract W to the sphere, then W <- W - lr step_length Phi."""
        W, place = self.sphere.retract(W, state, lr)
        momentum = torch.lerp(state["momentum"], G, 1 - self.momentum)
        ahead = torch.lerp(G, momentum, self.momentum) if self.nesterov else momentum
        direction, learnt = self.direction(ahead, place["u"], place["v"], state)
        shape = W.shape[-2:]
        W = self.sphere.step(W, direction, lr * self.step_length(*shape) / self.sphere.radius(*shape), state)
        return W, {"momentum": momentum, "basis": place["basis"], **learnt}

    def direction(self, M: Tensor, u: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:  # noqa: ARG002
        """Steepest direction of unit spectral norm, and the entries of the state that change."""
        return self.sign(M), {}

    def sign(self, M: Tensor) -> Tensor:
        """The matrix sign, as configured."""
        return msign(M, self.msign, self.msign_steps, self.msign_dtype)


@register_rule
@dataclass(frozen=True, kw_only=True)
class SSORule(MuonSphereRule):
    """MuonSphere with steps that are tangent to the sphere.

    Args:
        evaluations: matrix signs in each tangent step; 2 come within 0.8% of the best step in nine of ten.
    """

    name = "sso"

    evaluations: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole_number("evaluations", self.evaluations, 1)

    def init(self, W: Tensor) -> State:
        """The state of MuonSphere, and the slope of h, which every tangent step learns."""
        return {**super().init(W), "slope": torch.full_like(W[:, 0, 0], COLD_SLOPE)}

    def direction(self, M: Tensor, u: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        """Steepest direction tangent to the sphere, and the new slope."""
        step = tangent_step(unit_frobenius(M), u, v, self.sign, state["slope"], self.evaluations)
        return step.phi_Bmn, {"slope": step.slope_B}


@dataclass(frozen=True)
class MuonSphereArguments(OptimizerArguments, MuonSphereRule):
    """Arguments of `MuonSphere`.

    Args:
        lr: length of a step over the radius: one rate, or one for each role of a module.
    """

    lr: LearningRate = 5e-3


@dataclass(frozen=True)
class SSOArguments(OptimizerArguments, SSORule):
    """Arguments of `SSO`.

    Args:
        lr: length of a step over the radius: one rate, or one for each role of a module.
    """

    lr: LearningRate = 5e-3


class MuonSphere(GroupedOptimizer):
    """Muon's direction, with every matrix held on the spectral sphere of radius c sqrt(d_out/d_in).

    The embeddings, the unembedding and the vectors of a module follow AdamW.
    """

    @takes_arguments(MuonSphereArguments)
    def __init__(self, arguments: MuonSphereArguments) -> None:
        super().__init__(**arguments.for_groups())


class SSO(GroupedOptimizer):
    """The spectral sphere optimizer: the steepest step tangent to the sphere of radius c sqrt(d_out/d_in).

    The embeddings, the unembedding and the vectors of a module follow AdamW.
    """

    @takes_arguments(SSOArguments)
    def __init__(self, arguments: SSOArguments) -> None:
        super().__init__(**arguments.for_groups())
