"""The sphere that a weight matrix lives on: which norm it fixes, and how a step stays on it.

Shapes: B matrices of m = d_out rows and n = d_in columns. A new geometry is a new class with the four methods
of `Sphere`; the rules know no more of it.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hyperp.optim.linalg.spectral import BLOCK, cold_triple, warm_triple
from hyperp.optim.rule import Rate, SphereError, State, descend

RadiusMode = Literal["aspect", "unit"]
Retraction = Literal["hard", "dynamic"]
DYNAMIC_STEP = 0.05  # relative change of a matrix in a dynamic retraction, over lr (arXiv 2601.08393)


class Sphere(Protocol):
    """All matrices of one norm."""

    def init(self, W_Bmn: Tensor) -> State:
        """What the sphere keeps for every matrix; SphereError for one that is zero or not finite."""
        ...

    def project(self, W_Bmn: Tensor) -> Tensor:
        """Where training starts: exactly on the sphere; SphereError for a matrix that is zero or not
        finite."""
        ...

    def retract(self, W_Bmn: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """Back to the sphere, cheaply, and what is known of the matrices there, news for the state among
        it."""
        ...

    def step(self, W_Bmn: Tensor, direction_Bmn: Tensor, lr: Rate, state: State) -> Tensor:
        """Move against `direction` by `lr` radii; a retraction comes after this or before the next."""
        ...


@dataclass(frozen=True)
class FrobeniusSphere:
    """Matrices of the Frobenius norm that they started with (arXiv 2606.16899, 2603.28743)."""

    def init(self, W_Bmn: Tensor) -> State:
        """The norm that every matrix has now as its radius."""
        return {"radius": _refuse_degenerate(torch.linalg.vector_norm(W_Bmn, dim=(-2, -1)))}

    def project(self, W_Bmn: Tensor) -> Tensor:
        """They are there."""
        self.init(W_Bmn)
        return W_Bmn

    def retract(self, W_Bmn: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:  # noqa: ARG002
        """Rescale to the radius; a matrix of norm zero, or too long for its norm, becomes NaN."""
        norm_B = torch.linalg.vector_norm(W_Bmn, dim=(-2, -1))
        scale_B = torch.where(norm_B.isfinite(), state["radius"] / norm_B, torch.nan)
        return W_Bmn * scale_B[:, None, None], {}

    def step(self, W_Bmn: Tensor, direction_Bmn: Tensor, lr: Rate, state: State) -> Tensor:
        """Move by `lr` radii, whatever the length of `direction`; not at all along one shorter than 1e-15."""
        norm_B = torch.linalg.vector_norm(direction_Bmn, dim=(-2, -1))
        factor_B = torch.where(norm_B < 1e-15, 0, lr * state["radius"] / norm_B)
        return torch.addcmul(W_Bmn, direction_Bmn, factor_B[:, None, None], value=-1)


@dataclass(frozen=True)
class SpectralSphere:
    """Matrices of one largest singular value (arXiv 2601.08393).

    It is `factor` times sqrt(d_out/d_in) ("aspect") or 1 ("unit"). A hard retraction rescales to it; a
    dynamic one goes towards it by 0.05 lr, W <- (1 + 0.05 lr sign(R - sigma)) W. `block` right singular
    vectors are kept to find the top pair again.
    """

    factor: float = 1.0
    mode: RadiusMode = "aspect"
    retraction: Retraction = "hard"
    block: int = BLOCK

    def radius(self, d_out: int, d_in: int) -> float:
        """Largest singular value of a (d_out, d_in) matrix."""
        return self.factor * (math.sqrt(d_out / d_in) if self.mode == "aspect" else 1.0)

    def init(self, W_Bmn: Tensor) -> State:
        """The top right singular vectors, from an SVD."""
        _refuse_degenerate(W_Bmn.abs().amax((-2, -1)))
        return {"basis": cold_triple(W_Bmn, self.block).basis_Bnk}

    def project(self, W_Bmn: Tensor) -> Tensor:
        """Rescale to the radius by an SVD."""
        _refuse_degenerate(W_Bmn.abs().amax((-2, -1)))
        sigma_B = torch.linalg.matrix_norm(W_Bmn, ord=2)
        return W_Bmn * (self.radius(*W_Bmn.shape[-2:]) / sigma_B)[:, None, None]

    def retract(self, W_Bmn: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """Rescale by the top triple that the block finds, or go towards it; the new block, and the pair u,
        v."""
        radius, top = self.radius(*W_Bmn.shape[-2:]), warm_triple(W_Bmn, state["basis"])
        if self.retraction == "hard":
            scale_B = radius / top.sigma_B
        else:
            scale_B = 1 + DYNAMIC_STEP * lr * torch.sign(radius - top.sigma_B)
        return W_Bmn * scale_B[:, None, None], {"basis": top.basis_Bnk, "u": top.u_Bm, "v": top.v_Bn}

    def step(self, W_Bmn: Tensor, direction_Bmn: Tensor, lr: Rate, state: State) -> Tensor:  # noqa: ARG002
        """Move by `lr` radii along a `direction` of unit spectral norm."""
        return descend(W_Bmn, direction_Bmn, lr * self.radius(*W_Bmn.shape[-2:]))


def _refuse_degenerate(norm_B: Tensor) -> Tensor:
    if not bool((norm_B.isfinite() & (norm_B > 0)).all()):
        raise SphereError(f"must be finite and not zero to be held on a sphere, got norms {norm_B.tolist()}")
    return norm_B
