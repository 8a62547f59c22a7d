"""Largest singular values from scratch, for looking at matrices now and then; training keeps its own pairs.

Shapes: B matrices of m rows and n <= m columns.
"""

import torch
from torch import Tensor

from hyperp.optim.linalg.spectral import orthonormal, probe_like, top_eigenvector

EXACT = (
    256  # columns up to which LAPACK's eigenvalues of the n x n Gram matrix cost less than the basis below
)
BLOCK = 16
ROUNDS = 8


def spectral_norm(W_Bmn: Tensor) -> Tensor:
    """Largest singular value (B,) of each matrix; not finite for one that is not finite.

    On a CPU, up to EXACT columns, the root of the largest eigenvalue of W^T W: exact but for rounding (2e-6).
    Elsewhere the largest in a block Krylov space (arXiv 1504.05477) of BLOCK (ROUNDS + 1) vectors, exact if
    there are no more columns. It is never above the true one; with up to 2048 columns it was below it by at
    most 0.1% for Gaussian matrices and 0.3% for nearly orthogonal ones, whose values crowd at the top.
    Nothing waits for the device, which torch's own eigenvalues and singular values do.
    """
    W_Bmn = W_Bmn.mT if W_Bmn.shape[-1] > W_Bmn.shape[-2] else W_Bmn
    largest_B = W_Bmn.abs().amax(dim=(-2, -1))
    usable_B = largest_B.isfinite() & (largest_B > 0)
    # To entries of at most 1, whose squares are finite; LAPACK refuses what is not.
    W_Bmn = torch.where(usable_B[:, None, None], W_Bmn / largest_B[:, None, None], 1)
    n = W_Bmn.shape[-1]
    if W_Bmn.device.type == "cpu" and n <= EXACT:
        sigma_B = torch.linalg.eigvalsh(W_Bmn.mT @ W_Bmn)[:, -1].clamp(min=0).sqrt()
    else:
        Q_Bnk = krylov_basis(W_Bmn) if n > BLOCK * (ROUNDS + 1) else None
        image_Bmk = W_Bmn if Q_Bnk is None else W_Bmn @ Q_Bnk
        y_Bk1 = top_eigenvector(image_Bmk.mT @ image_Bmk)[:, :, None]
        v_Bn1 = y_Bk1 if Q_Bnk is None else Q_Bnk @ y_Bk1
        sigma_B = torch.linalg.vector_norm(image_Bmk @ y_Bk1, dim=(-2, -1))
        sigma_B = sigma_B / torch.linalg.vector_norm(v_Bn1, dim=(-2, -1))
    return torch.where(usable_B, sigma_B * largest_B, largest_B)


def krylov_basis(W_Bmn: Tensor) -> Tensor:
    """Orthonormal (B, n, k) basis of X, (W^T W) X, (W^T W)^2 X, ..., with X a fixed block."""
    X_nk = probe_like(W_Bmn.new_empty(W_Bmn.shape[-1], BLOCK))
    X_Bnk = orthonormal(X_nk.expand(len(W_Bmn), -1, -1))
    Q_Bnk = X_Bnk
    for _ in range(ROUNDS):
        X_Bnk = W_Bmn.mT @ (W_Bmn @ X_Bnk)
        X_Bnk = orthonormal(X_Bnk - Q_Bnk @ (Q_Bnk.mT @ X_Bnk))
        Q_Bnk = torch.cat((Q_Bnk, X_Bnk), dim=-1)
    return orthonormal(Q_Bnk)  # once more: a remainder may have been nothing but rounding
