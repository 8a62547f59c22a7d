"""The top singular triple of a matrix, which the spectral sphere is made of; `tangent` steps along it.

Shapes: B matrices of m = d_out rows and n = d_in columns; k the block of vectors kept between steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Right vectors kept: on the sphere the values below the first crowd up to it, and one vector gets lost.
BLOCK = 8


class TopTriple(NamedTuple):
    """Largest singular value, its vectors, W v = sigma u, and the orthonormal block that finds them again."""

    sigma_B: Tensor
    u_Bm: Tensor
    v_Bn: Tensor
    basis_Bnk: Tensor


def cold_triple(W_Bmn: Tensor, block: int = BLOCK) -> TopTriple:
    """Top singular triple from a full SVD, for the first step and for checks."""
    U, S, Vh = torch.linalg.svd(W_Bmn, full_matrices=False)
    basis = Vh[..., : min(block, S.shape[-1]), :].mT.contiguous()
    return TopTriple(S[..., 0], U[..., 0], Vh[..., 0, :], basis)


def warm_triple(W_Bmn: Tensor, basis_Bnk: Tensor, iterations: int = 1) -> TopTriple:
    """Top singular triple by `iterations` rounds of subspace iteration from the block of the step before.

    The block is multiplied by W^T W and made orthonormal; the singular values of W on it (Rayleigh-Ritz, a
    k x k eigenproblem) give the triple. sigma is at most the true one; k = min(m, n) gives it exactly.
    Measured on the matrices of a byte-level model (64 x 64 to 64 x 256, 600 steps of SSO at rate 0.02, the
    second value within 0.5% of the first in the median): sigma is 0.01% low in the median and 1.4% at most,
    the cosine of v 1.00 in the median; it drops where two values cross.
    """
    for _ in range(iterations):
        basis_Bnk = torch.linalg.qr(W_Bmn.mT @ (W_Bmn @ basis_Bnk)).Q
    image_Bmk = W_Bmn @ basis_Bnk
    squares, rotation = torch.linalg.eigh(image_Bmk.mT @ image_Bmk)
    basis_Bnk = basis_Bnk @ rotation.flip(-1)
    sigma_B = squares[..., -1].clamp_min(0).sqrt()
    length_B1 = sigma_B[..., None].clamp_min(torch.finfo(sigma_B.dtype).tiny)
    u_Bm = (image_Bmk @ rotation[..., -1:]).squeeze(-1) / length_B1
    return TopTriple(sigma_B, u_Bm, basis_Bnk[..., 0], basis_Bnk)
