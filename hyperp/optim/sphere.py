"""The sphere that a weight matrix lives on: which norm it fixes, and how a step stays on it.

Shapes: B matrices of m = d_out rows and n = d_in columns. A new geometry is a new class with the four methods
of `Sphere`: rules use nothing else of it.
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
DYNAMIC_STEP = 0.05  # relative change of a matrix by a dynamic retraction, over lr (arXiv 2601.08393)


class Sphere(Protocol):
    """All matrices of one norm."""

    def init(self, W_Bmn: Tensor) -> State:
        """State that the sphere keeps of a matrix; SphereError for a matrix that is zero or not finite."""
        ...

    def project(self, W_Bmn: Tensor) -> Tensor:
        """Move to the sphere exactly, before training.

        Raises SphereError for a matrix that is zero or not finite.
        """
        ...

    def retract(self, W_Bmn: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """Move back to the sphere, cheaply.

        Also returns what is known of the matrices there, including the entries of the state that change.
        """
        ...

    def step(self, W_Bmn: Tensor, direction_Bmn: Tensor, lr: Rate, state: State) -> Tensor:
        """Move against `direction` by `lr` radii; a rule retracts after this step or before the next one."""
        ...


@dataclass(frozen=True)
class FrobeniusSphere:
    """Matrices that keep their initial Frobenius norm (arXiv 2606.16899, 2603.28743)."""

    def init(self, W_Bmn: Tensor) -> State:
        """The present norm of every matrix, as its radius."""
        return {"radius": _refuse_degenerate(torch.linalg.vector_norm(W_Bmn, dim=(-2, -1)))}

    def project(self, W_Bmn: Tensor) -> Tensor:
        """Leave the matrices as they are: their present norm is the radius."""
        self.init(W_Bmn)
        return W_Bmn

    def retract(self, W_Bmn: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:  # noqa: ARG002
        """Rescale to the radius; a matrix whose norm is zero or not finite becomes NaN."""
        norm_B = torch.linalg.vector_norm(W_Bmn, dim=(-2, -1))
        scale_B = torch.where(norm_B.isfinite(), state["radius"] / norm_B, torch.nan)
        return W_Bmn * scale_B[:, None, None], {}

    def step(self, W_Bmn: Tensor, direction_Bmn: Tensor, lr: Rate, state: State) -> Tensor:
        """Move by `lr` radii, whatever the length of `direction`; stay if that is below 1e-15."""
        norm_B = torch.linalg.vector_norm(direction_Bmn, dim=(-2, -1))
        factor_B = torch.where(norm_B < 1e-15, 0, lr * state["radius"] / norm_B)
        return torch.addcmul(W_Bmn, direction_Bmn, factor_B[:, None, None], value=-1)


@dataclass(frozen=True)
class SpectralSphere:
    """Matrices whose largest singular value is the radius R (arXiv 2601.08393).

    R is `factor` times sqrt(d_out/d_in) ("aspect") or 1 ("unit"). A hard retraction rescales to R; a dynamic
    one goes towards it by 0.05 lr, W <- (1 + 0.05 lr sign(R - sigma)) W. `block` right singular vectors are
    kept to find the top singular pair again.
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
        """Rescale to the radius, by exact singular values."""
        _refuse_degenerate(W_Bmn.abs().amax((-2, -1)))
        sigma_B = torch.linalg.matrix_norm(W_Bmn, ord=2)
        return W_Bmn * (self.radius(*W_Bmn.shape[-2:]) / sigma_B)[:, None, None]

    def retract(self, W_Bmn: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """Rescale to the radius or go towards it, by the top singular value that the block finds.

        Also returns the new block, and the top singular pair u, v.
        """
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
