"""The sphere that a weight matrix lives on: which norm it fixes, and how a matrix is put there.

Shapes: B matrices of m = d_out rows and n = d_in columns. A new geometry is a new class with the same two
methods.
"""

from typing import Protocol

import torch
from torch import Tensor

from hyperp.optim.msign import unit_frobenius
from hyperp.optim.spectral import TopTriple, warm_triple


class Sphere(Protocol):
    """All matrices of one norm."""

    def norm(self, W_Bmn: Tensor) -> Tensor:
        """The norm of each matrix, (B,)."""
        ...

    def project(self, W_Bmn: Tensor, radius_B: Tensor) -> Tensor:
        """The matrices rescaled to norm `radius_B`; none of them may be zero."""
        ...


class FrobeniusSphere:
    """Matrices of one Frobenius norm (arXiv 2606.16899, 2603.28743)."""

    def norm(self, W_Bmn: Tensor) -> Tensor:
        """Root of the sum of squares."""
        return torch.linalg.vector_norm(W_Bmn, dim=(-2, -1))

    def project(self, W_Bmn: Tensor, radius_B: Tensor) -> Tensor:
        """Rescale to Frobenius norm `radius_B`."""
        return W_Bmn * (radius_B / self.norm(W_Bmn))[:, None, None]

    def step(self, W_Bmn: Tensor, direction_Bmn: Tensor, lr: float, radius_B: Tensor) -> Tensor:
        """Move against `direction` by `lr` radii, whatever its length, and come back to the sphere."""
        return self.project(W_Bmn - (lr * radius_B)[:, None, None] * unit_frobenius(direction_Bmn), radius_B)


class SpectralSphere:
    """Matrices of one largest singular value (arXiv 2601.08393)."""

    def norm(self, W_Bmn: Tensor) -> Tensor:
        """Largest singular value, from an SVD."""
        return torch.linalg.matrix_norm(W_Bmn, ord=2)

    def project(self, W_Bmn: Tensor, radius_B: Tensor) -> Tensor:
        """Rescale to largest singular value `radius_B`, exactly."""
        return W_Bmn * (radius_B / self.norm(W_Bmn))[:, None, None]

    def retract(self, W_Bmn: Tensor, basis_Bnk: Tensor, radius_B: Tensor) -> tuple[Tensor, TopTriple]:
        """Rescale to `radius_B` by the triple that the warm block finds; returns the triple too."""
        top = warm_triple(W_Bmn, basis_Bnk)
        return W_Bmn * (radius_B / top.sigma_B)[:, None, None], top._replace(sigma_B=radius_B)
