"""The top singular triple against its definition."""

import pytest
import torch

from hyperp.optim.msign import msign
from hyperp.optim.spectral import cold_triple, warm_triple

torch.set_num_threads(1)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
        torch.testing.assert_close(basis.mT @ basis, torch.eye(8).expand(4, 8, 8), rtol=0, atol=1e-5)
    assert worst < 1e-2
