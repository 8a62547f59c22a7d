"""The top singular triple, compared with its definition."""

import pytest
import torch
from torch import nn

from hyperp.optim import SSO
from hyperp.optim.linalg.msign import msign
from hyperp.optim.linalg.spectral import cold_triple, orthonormal, top_eigenvector, warm_triple
from tests.optim.optimizers import gaussian

torch.set_num_threads(1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1).abs()


@pytest.mark.parametrize("shape", [(12, 12), (20, 6), (6, 20), (1, 7), (7, 1)])
def test_cold_triple_is_the_top_of_the_svd(shape: tuple[int, int]):
    W = gaussian(3, *shape)
    top = cold_triple(W)
    torch.testing.assert_close(top.sigma_B, torch.linalg.matrix_norm(W, ord=2), rtol=1e-12, atol=0)
    image = (W @ top.v_Bn[..., None]).squeeze(-1)
    torch.testing.assert_close(image, top.sigma_B[:, None] * top.u_Bm, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (6, 20), (1, 7), (7, 1), (4, 4)])
def test_a_block_as_large_as_the_matrix_finds_the_triple_of_any_other_matrix(shape: tuple[int, int]):
    basis = cold_triple(gaussian(3, *shape)).basis_Bnk
    W = gaussian(3, *shape, seed=1)
    top, true = warm_triple(W, basis), cold_triple(W)
    torch.testing.assert_close(top.sigma_B, true.sigma_B, rtol=1e-12, atol=0)
    torch.testing.assert_close(cosine(top.v_Bn, true.v_Bn), torch.ones(3).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(cosine(top.u_Bm, true.u_Bm), torch.ones(3).double(), rtol=0, atol=1e-10)


def test_iterations_converge_and_never_overestimate():
    W, basis = gaussian(4, 40, 30), cold_triple(gaussian(4, 40, 30, seed=1)).basis_Bnk
    true = cold_triple(W).sigma_B
    errors = [(true - warm_triple(W, basis, n).sigma_B) / true for n in (1, 3, 30)]
    assert all((error > -1e-12).all() for error in errors)
    assert errors[0].max() > errors[1].max() > errors[2].max()
    assert errors[2].max() < 1e-6


def test_a_warm_block_follows_a_drifting_matrix_in_float32():
    W = gaussian(4, 48, 32).float()
    basis, worst = cold_triple(W).basis_Bnk, 0.0
    for step in range(60):
        W = W + 0.02 * torch.linalg.matrix_norm(W, ord=2)[:, None, None] * msign(
            gaussian(4, 48, 32, seed=step).float()
        )
        top = warm_triple(W, basis)
        basis = top.basis_Bnk
        worst = max(worst, float((1 - top.sigma_B / torch.linalg.matrix_norm(W, ord=2)).abs().max()))
        torch.testing.assert_close(basis.mT @ basis, torch.eye(8).expand(4, 8, 8), rtol=0, atol=1e-4)
    assert worst < 1e-2


def test_a_block_that_a_matrix_of_low_rank_empties_fills_again():
    low = (gaussian(2, 20, 3) @ gaussian(2, 3, 16, seed=1)).float()
    full = gaussian(2, 20, 16, seed=2).float()
    basis = cold_triple(full).basis_Bnk
    top = warm_triple(low, basis)
    for _ in range(9):
        assert top.basis_Bnk.isfinite().all()
        top = warm_triple(low, top.basis_Bnk)
    torch.testing.assert_close(top.sigma_B, torch.linalg.matrix_norm(low, ord=2), rtol=1e-5, atol=0)
    for _ in range(20):
        top = warm_triple(full, top.basis_Bnk)
    torch.testing.assert_close(top.sigma_B, torch.linalg.matrix_norm(full, ord=2), rtol=1e-3, atol=0)
    # Near sqrt(8), the norm of a basis in which every column has length 1.
    assert (torch.linalg.matrix_norm(top.basis_Bnk, dim=(-2, -1)) > 2.8).all()


def test_matrices_that_are_zero_or_not_finite_disturb_no_neighbour():
    W, basis = gaussian(4, 6, 5), cold_triple(gaussian(4, 6, 5, seed=1)).basis_Bnk
    alone = warm_triple(W[3:], basis[3:])
    W[0], W[1, 2, 3], W[2, 0, 0] = 0, torch.nan, torch.inf
    top = warm_triple(W, basis)
    assert not top.u_Bm[:3].isfinite().all(-1).any()
    for mine, theirs in zip(alone, top, strict=True):
        torch.testing.assert_close(mine[0], theirs[3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 8])
@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4])
def test_the_top_eigenvector_is_found_to_small_gaps(k: int, gap: float):
    Q = torch.linalg.qr(gaussian(3, k, k)).Q
    eigenvalues = torch.cat([torch.tensor([1 + gap]), torch.linspace(1, 0, k)[: k - 1]]).double()
    found = top_eigenvector(Q * eigenvalues @ Q.mT)
    torch.testing.assert_close(cosine(found, Q[..., 0]), torch.ones(3).double(), rtol=0, atol=1e-8)


def test_of_equal_eigenvalues_any_vector_will_do():
    Q = torch.linalg.qr(gaussian(3, 6, 6)).Q
    H = Q * torch.tensor([2.0, 2, 2, 1, 0.5, 0]).double() @ Q.mT
    found = top_eigenvector(H)
    torch.testing.assert_close((H @ found[..., None]).squeeze(-1), 2 * found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_orthonormal_basis_spans_the_columns(dtype: torch.dtype):
    Z = (gaussian(3, 20, 5) * torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05]).double()).to(dtype)
    Q = orthonormal(Z)
    rounding = 3e-3 if dtype == torch.float32 else 1e-11  # the ridge over the square of the shortest column
    torch.testing.assert_close(Q.mT @ Q, torch.eye(5, dtype=dtype).expand(3, 5, 5), rtol=0, atol=rounding)
    torch.testing.assert_close(Q @ (Q.mT @ Z), Z, rtol=0, atol=10 * rounding)


@pytest.mark.parametrize("kind", ["diagonal", "blocks"])
def test_a_direction_that_the_block_never_meets_is_found_when_it_outgrows_the_rest(kind):
    """W maps the kept vectors to each other, and rounding alone would not lead out of them in time."""
    n, generator = 32, torch.Generator().manual_seed(0)
    if kind == "diagonal":
        mask = torch.eye(n)
    else:
        mask = torch.block_diag(torch.ones(8, 8), torch.ones(n - 8, n - 8))
    W = nn.Parameter(torch.eye(n) + 0.1 * mask * torch.randn(n, n, generator=generator))
    with torch.no_grad():  # so that the block starts in the first eight coordinates
        W[:8, :8] *= 2
    pull = mask.clone()
    pull[:8, :8] = 0
    optimizer = SSO([W], lr=0.02, momentum=0.0)
    optimizer.project_()
    worst = 0.0
    for _ in range(150):
        W.grad = -pull + 0.01 * mask * torch.randn(n, n, generator=generator)
        optimizer.step()
        worst = max(worst, float(torch.linalg.matrix_norm(W.detach(), ord=2)))
    assert worst < 1.3
