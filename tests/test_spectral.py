"""The top singular triple and the tangent step against their definitions."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperp.optim import reference
from hyperp.optim.msign import msign, unit_frobenius
from hyperp.optim.spectral import cold_triple, tangent_step, warm_triple

torch.set_num_threads(1)

exact_sign = partial(msign, method="svd")


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


def momenta(
    m: int, n: int, seed: int, along: float, batch: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Momenta of norm 1 with a decaying spectrum and a part along the top pair of another matrix."""
    top = cold_triple(gaussian(batch, m, n, seed=seed))
    k = min(m, n)
    spectrum = torch.linspace(0.05, 1, k, dtype=torch.float64) ** 2
    M = gaussian(batch, m, k, seed=seed + 1) * spectrum @ gaussian(batch, k, n, seed=seed + 2)
    M = unit_frobenius(M) + along * top.u_Bm[:, :, None] * top.v_Bn[:, None, :]
    return unit_frobenius(M), top.u_Bm, top.v_Bn


SIZES = st.integers(1, 12)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(0, 10**6), st.floats(-3, 3))
def test_tangent_step_is_tangent_feasible_and_optimal(m: int, n: int, seed: int, along: float):
    M, u, v = momenta(m, n, seed, along)
    step = tangent_step(M, u, v, exact_sign, tolerance=1e-9, max_evaluations=200)
    assert step.residual_B.abs().max() < 1e-12
    assert step.multiplier_B.abs().max() <= math.sqrt(2)
    assert torch.linalg.matrix_norm(step.phi_Bmn, ord=2).max() < 1 + 1e-8
    for i in range(len(M)):
        expected, _ = reference.tangent_direction(M[i], u[i], v[i])
        # The value is unique even where the maximiser is not.
        value, best = (M[i] * step.phi_Bmn[i]).sum(), (M[i] * expected).sum()
        torch.testing.assert_close(value, best, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(10, 10), (16, 6), (6, 16), (1, 8)])
@pytest.mark.parametrize("along", [-1.0, 0.0, 0.3])
def test_tangent_step_equals_its_twin(shape: tuple[int, int], along: float):
    M, u, v = momenta(*shape, seed=5, along=along)
    step = tangent_step(M, u, v, exact_sign, tolerance=1e-11, max_evaluations=200)
    for i in range(len(M)):
        phi, multiplier = reference.tangent_direction(M[i], u[i], v[i])
        torch.testing.assert_close(step.phi_Bmn[i], phi, rtol=0, atol=1e-6)
        assert float(step.multiplier_B[i]) == pytest.approx(multiplier, abs=1e-6)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("shape", [(24, 24), (32, 8), (8, 32), (1, 16)])
def test_the_shortfall_is_within_the_tolerance_in_float32(tolerance: float, shape: tuple[int, int]):
    for along in (-2.0, -0.1, 0.0, 0.5):
        M, u, v = momenta(*shape, seed=7, along=along, batch=8)
        step = tangent_step(M.float(), u.float(), v.float(), msign, tolerance, 40)
        best = tangent_step(M, u, v, exact_sign, 1e-10, 200)
        value, optimum = (M * step.phi_Bmn).sum((1, 2)), (M * best.phi_Bmn).sum((1, 2))
        assert step.residual_B.abs().max() < 1e-6
        assert ((optimum - value) / optimum).max() < tolerance + 1e-5
        assert step.evaluations <= 20


def test_a_momentum_without_a_part_along_the_pair_takes_one_evaluation():
    M = torch.diag(torch.tensor([0.0, 0.6, 0.8]).double())[None]
    e = torch.tensor([[1.0, 0.0, 0.0]]).double()
    step = tangent_step(M, e, e, exact_sign)
    assert step.evaluations == 1
    expected = torch.diag(torch.tensor([0.0, 1, 1]).double())[None]
    torch.testing.assert_close(step.phi_Bmn, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (1, 6)])
def test_a_momentum_along_the_pair_alone_gives_no_step(sign: float, shape: tuple[int, int]):
    top = cold_triple(gaussian(1, *shape))
    M = sign * top.u_Bm[:, :, None] * top.v_Bn[:, None, :]
    step = tangent_step(M, top.u_Bm, top.v_Bn, exact_sign, max_evaluations=60)
    torch.testing.assert_close(step.phi_Bmn, torch.zeros_like(M), rtol=0, atol=1e-9)


def test_a_zero_momentum_gives_no_step_and_disturbs_no_neighbour():
    M, u, v = momenta(6, 5, seed=3, along=0.4)
    alone = tangent_step(M, u, v, exact_sign, 1e-10, 100)
    M = torch.cat([torch.zeros(1, 6, 5).double(), M])
    beside = tangent_step(M, torch.cat([u[:1], u]), torch.cat([v[:1], v]), exact_sign, 1e-10, 100)
    assert torch.equal(beside.phi_Bmn[0], torch.zeros(6, 5).double())
    torch.testing.assert_close(beside.phi_Bmn[1:], alone.phi_Bmn, rtol=0, atol=1e-7)


def test_equal_singular_values_of_the_weight_are_no_trouble():
    top = cold_triple(torch.linalg.qr(gaussian(2, 6, 6)).Q)
    M = unit_frobenius(gaussian(2, 6, 6, seed=1))
    step = tangent_step(M, top.u_Bm, top.v_Bn, exact_sign, 1e-8, 100)
    assert step.residual_B.abs().max() < 1e-12
    assert ((M * step.phi_Bmn).sum((1, 2)) > 0).all()


def test_opposite_pairs_are_one_pair():
    M, u, v = momenta(6, 5, seed=9, along=0.4)
    one, other = (tangent_step(M, s * u, s * v, exact_sign, 1e-10, 100).phi_Bmn for s in (1, -1))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("along", [-0.5, -0.2, 0.2, 0.5])
def test_a_momentum_with_a_part_along_the_pair_takes_few_evaluations(along: float):
    M, u, v = momenta(48, 32, seed=11, along=along, batch=8)
    assert tangent_step(M.float(), u.float(), v.float(), msign).evaluations <= 5
