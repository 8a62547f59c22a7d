"""The top singular triple of a matrix, which the spectral sphere and the tangent step are defined by.

Shapes: B matrices of m = d_out rows and n = d_in columns; k the block of vectors kept between steps.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Right singular vectors kept. On the sphere, the next singular values crowd up to the first, and a single
# vector would lose it.
BLOCK = 8
PROBE = 1e-4  # relative size of the probe in the block; turns the top pair by far less than a step does
SQUARINGS = 20  # the power 2^20 of a k x k matrix keeps only its top eigenvector, down to gaps of 1e-6


class TopTriple(NamedTuple):
    """Largest singular value, its vectors, W v = sigma u, and the orthonormal block to find them again."""

    sigma_B: Tensor
    u_Bm: Tensor
    v_Bn: Tensor
    basis_Bnk: Tensor


def cold_triple(W_Bmn: Tensor, block: int = BLOCK) -> TopTriple:
    """Top singular triple from a full SVD, for the first step and for tests."""
    U, S, Vh = torch.linalg.svd(W_Bmn, full_matrices=False)
    basis = Vh[..., : min(block, S.shape[-1]), :].mT.contiguous()
    return TopTriple(S[..., 0], U[..., 0], Vh[..., 0, :], basis)


def warm_triple(W_Bmn: Tensor, basis_Bnk: Tensor, iterations: int = 1) -> TopTriple:
    """Top singular triple by `iterations` rounds of subspace iteration from the block of the step before.

    The block is multiplied by W^T W and made orthonormal. The best vector in it (Rayleigh-Ritz) is taken for
    the top right singular vector. sigma is at most the true one, and exact for k = min(m, n). A matrix that
    is zero or not finite gives a triple that is not finite, and no error. The host does not wait for the
    device: a Cholesky factor replaces QR, and repeated squaring replaces the k x k eigenproblem. A little of
    a fixed block is mixed in, so that a direction is found that outgrows the kept ones while W maps none of
    them to it.
    """
    basis_Bnk = basis_Bnk + PROBE * probe_like(basis_Bnk)
    for _ in range(iterations):
        basis_Bnk = orthonormal(W_Bmn.mT @ (W_Bmn @ basis_Bnk))
    image_Bmk = W_Bmn @ basis_Bnk
    best_Bk1 = top_eigenvector(image_Bmk.mT @ image_Bmk)[:, :, None]
    v_Bn, image_Bm = (basis_Bnk @ best_Bk1).squeeze(-1), (image_Bmk @ best_Bk1).squeeze(-1)
    length_B1 = torch.linalg.vector_norm(v_Bn, dim=-1, keepdim=True)
    sigma_B1 = torch.linalg.vector_norm(image_Bm, dim=-1, keepdim=True)
    return TopTriple((sigma_B1 / length_B1).squeeze(-1), image_Bm / sigma_B1, v_Bn / length_B1, basis_Bnk)


def probe_like(basis_Bnk: Tensor) -> Tensor:
    """A fixed block (n, k) of columns of about unit length, with a part in every direction."""
    n, k = basis_Bnk.shape[-2:]
    rows, columns = (
        torch.arange(1, size + 1, dtype=basis_Bnk.dtype, device=basis_Bnk.device) for size in (n, k)
    )
    return torch.cos(torch.outer(rows, columns)) * math.sqrt(2 / n)


def orthonormal(Z_Bnk: Tensor) -> Tensor:
    """A basis of the columns of Z from a Cholesky factor of Z^T Z, orthonormal but for rounding.

    A ridge of the size of rounding keeps the factor finite where Z lacks rank. The surplus columns come out
    small there, and grow again in later rounds when there is something to find.
    """
    gram_Bkk = Z_Bnk.mT @ Z_Bnk
    ridge_B = 10 * torch.finfo(Z_Bnk.dtype).eps * gram_Bkk.diagonal(dim1=-2, dim2=-1).sum(-1)
    eye_kk = torch.eye(gram_Bkk.shape[-1], dtype=Z_Bnk.dtype, device=Z_Bnk.device)
    factor_Bkk, _ = torch.linalg.cholesky_ex(gram_Bkk + ridge_B[:, None, None] * eye_kk)
    return torch.linalg.solve_triangular(factor_Bkk, Z_Bnk.mT, upper=False).mT


def top_eigenvector(H_Bkk: Tensor) -> Tensor:
    """Eigenvector (B, k) of the largest eigenvalue of positive semi-definite matrices, of unit length."""
    for _ in range(SQUARINGS // 4):
        H_Bkk = H_Bkk / H_Bkk.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        H_Bkk = torch.linalg.matrix_power(H_Bkk, 16)
    largest_B11 = H_Bkk.diagonal(dim1=-2, dim2=-1).argmax(-1)[:, None, None]
    column_Bk = H_Bkk.gather(-1, largest_B11.expand(-1, H_Bkk.shape[-1], 1)).squeeze(-1)
    return column_Bk / torch.linalg.vector_norm(column_Bk, dim=-1, keepdim=True)
