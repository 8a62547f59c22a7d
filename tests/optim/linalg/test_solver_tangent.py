"""The tangent step is tangent, feasible, certified and near its optimum for any momentum."""

import math
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hyperp.optim.linalg.msign import msign, unit_frobenius
from hyperp.optim.linalg.spectral import cold_triple
from hyperp.optim.linalg.tangent import COLD_SLOPE, diagnosed_tangent_step, tangent_step
from tests.optim.optimizers import gaussian
from tests.oracles import reference

torch.set_num_threads(1)

exact_sign = partial(msign, method="svd")
SIZES = st.integers(1, 12)
EXACT = 200  # evaluations: converged to rounding


def momenta(m: int, n: int, seed: int, along: float, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Momenta of norm 1 with a decaying spectrum and a part along the top pair of another matrix."""
    top = cold_triple(gaussian(batch, m, n, seed=seed))
    k = min(m, n)
    spectrum = torch.linspace(0.05, 1, k, dtype=torch.float64) ** 2
    M = gaussian(batch, m, k, seed=seed + 1) * spectrum @ gaussian(batch, k, n, seed=seed + 2)
    M = unit_frobenius(M) + along * top.u_Bm[:, :, None] * top.v_Bn[:, None, :]
    return unit_frobenius(M), top.u_Bm, top.v_Bn


class Solution(NamedTuple):
    """A tangent step with its diagnostics."""

    phi_Bmn: Tensor
    slope_B: Tensor
    multiplier_B: Tensor
    shortfall_B: Tensor
    excess_B: Tensor


def solve_from(M: Tensor, u: Tensor, v: Tensor, sign: Any, slope: Tensor, evaluations: int = 2) -> Solution:
    step, diagnostics = diagnosed_tangent_step(M, u, v, sign, slope, evaluations)
    return Solution(*step, *diagnostics)


def solve(M: Tensor, u: Tensor, v: Tensor, evaluations: int = 2, sign: Any = None) -> Solution:
    sign = sign or (exact_sign if M.dtype == torch.float64 else msign)
    return solve_from(M, u, v, sign, u.new_full((len(u),), COLD_SLOPE), evaluations)


def values(M: Tensor, phi: Tensor) -> Tensor:
    return (M.double() * phi.double()).sum((1, 2))


def optima(M: Tensor, u: Tensor, v: Tensor) -> Tensor:
    M, u, v = M.double(), u.double(), v.double()
    found = [reference.tangent_direction(M[i], u[i], v[i])[0] for i in range(len(M))]
    return values(M, torch.stack(found))


def along_pair(phi: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bm,bmn,bn->b", u.double(), phi.double(), v.double())


def assert_promises(M: Tensor, u: Tensor, v: Tensor, step: Solution, rounding: float) -> None:
    """Assert what holds for any momentum and any number of evaluations."""
    assert step.phi_Bmn.isfinite().all()
    assert along_pair(step.phi_Bmn, u, v).abs().max() < rounding
    assert step.multiplier_B.abs().max() <= math.sqrt(2) + 1e-6
    norms = torch.linalg.matrix_norm(step.phi_Bmn.double(), ord=2)
    assert (norms <= 1 + step.excess_B + rounding).all()
    assert (values(M, step.phi_Bmn) >= optima(M, u, v) - step.shortfall_B - rounding).all()
    assert ((step.slope_B >= 1e-2) & (step.slope_B <= 1e2)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_a_step_is_the_same_to_the_bit_without_its_diagnostics(evaluations: int, dtype: torch.dtype):
    M, u, v = (x.to(dtype) for x in momenta(9, 6, seed=1, along=0.4))
    slope = torch.logspace(-1, 1, 3, dtype=dtype)
    step, _ = diagnosed_tangent_step(M, u, v, msign, slope, evaluations)
    for own, other in zip(tangent_step(M, u, v, msign, slope, evaluations), step, strict=True):
        assert torch.equal(own, other)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, SIZES, st.integers(0, 10**6), st.floats(-3, 3), st.integers(1, 5))
def test_promises_hold_for_any_momentum(m: int, n: int, seed: int, along: float, evaluations: int):
    M, u, v = momenta(m, n, seed, along)
    assert_promises(M, u, v, solve(M, u, v, evaluations), rounding=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    SIZES,
    SIZES,
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 1.0, -1e-3, -1.0, 1e3, -1e3]),
    st.floats(-2, 2),
    st.integers(1, 4),
)
def test_promises_hold_for_adversarial_momenta_and_slopes(
    m: int, n: int, seed: int, along: float, log_slope: float, rank: int
):
    top = cold_triple(gaussian(2, m, n, seed=seed))
    M = gaussian(2, m, rank, seed=seed + 1) @ gaussian(2, rank, n, seed=seed + 2)
    M = unit_frobenius(M) + along * top.u_Bm[:, :, None] * top.v_Bn[:, None, :]
    M, u, v = unit_frobenius(M), top.u_Bm, top.v_Bn
    step = solve_from(M, u, v, exact_sign, torch.full_like(u[:, 0], 10**log_slope), 2)
    assert_promises(M, u, v, step, rounding=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SIZES, SIZES, st.integers(0, 10**6), st.floats(-3, 3))
def test_many_evaluations_reach_the_optimum(m: int, n: int, seed: int, along: float):
    M, u, v = momenta(m, n, seed, along)
    step = solve(M, u, v, EXACT)
    # The value is unique even where the maximiser is not.
    torch.testing.assert_close(values(M, step.phi_Bmn), optima(M, u, v), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(step.shortfall_B, torch.zeros(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(10, 10), (16, 6), (6, 16), (1, 8)])
@pytest.mark.parametrize("along", [-1.0, 0.0, 0.3])
def test_many_evaluations_find_the_direction_and_multiplier_of_the_twin(shape: tuple[int, int], along: float):
    M, u, v = momenta(*shape, seed=5, along=along)
    step = solve(M, u, v, EXACT)
    for i in range(len(M)):
        phi, multiplier = reference.tangent_direction(M[i], u[i], v[i])
        torch.testing.assert_close(step.phi_Bmn[i], phi, rtol=0, atol=1e-6)
        assert float(step.multiplier_B[i]) == pytest.approx(multiplier, abs=1e-6)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("along", [-2.0, -0.1, 0.0, 0.5])
def test_the_search_to_be_read_reaches_its_tolerance(tolerance: float, along: float):
    M, u, v = momenta(12, 9, seed=7, along=along)
    best = optima(M, u, v)
    for i in range(len(M)):
        phi, signs = reference.tangent_search(M[i], u[i], v[i], tolerance=tolerance)
        assert abs(float(u[i] @ phi @ v[i])) < 1e-12
        # An end with |h| below the tolerance is used alone, and loses a part of that size.
        assert float((M[i] * phi).sum()) == pytest.approx(float(best[i]), rel=2 * tolerance)
        assert torch.linalg.matrix_norm(phi, ord=2) <= 1 + tolerance
        assert signs <= 20


@pytest.mark.parametrize("shape", [(24, 24), (32, 8), (8, 32), (1, 16), (16, 1), (64, 48)])
def test_two_evaluations_in_float32_are_near_the_optimum_on_a_slowly_changing_momentum(
    shape: tuple[int, int],
):
    M, u, v = momenta(*shape, seed=3, along=0.1, batch=4)
    slope = torch.full((4,), COLD_SLOPE)
    shortfalls, bracketed = [], []
    for t in range(12):
        M = unit_frobenius(M + 0.3 * unit_frobenius(gaussian(4, *shape, seed=t)))
        step = solve_from(M.float(), u.float(), v.float(), msign, slope)
        slope = step.slope_B
        assert along_pair(step.phi_Bmn, u.float(), v.float()).abs().max() < 1e-6
        shortfalls.append(1 - values(M, step.phi_Bmn) / optima(M, u, v).clamp_min(1e-6))
        bracketed.append(step.excess_B == 0)
    assert torch.stack(bracketed).double().mean() > 0.8
    # A vector has one singular value, so that h jumps where M loses its part along the pair.
    assert torch.stack(shortfalls).median() < (0.01 if min(shape) > 1 else 0.1)
    assert torch.stack(shortfalls).max() < (0.1 if min(shape) > 1 else 0.3)


def test_the_slope_settles_and_then_brackets():
    M, u, v = (x.float() for x in momenta(32, 24, seed=3, along=0.4))
    for cold in (1e-2, 1.0, 1e2):
        step = solve_from(M, u, v, msign, torch.full((3,), cold))
        for _ in range(59):
            step = solve_from(M, u, v, msign, step.slope_B)
        assert (step.excess_B == 0).all()
        # g(0) over the root, times the mean singular value.
        mean = values(M, msign(M)) / 24
        seen = along_pair(msign(M), u, v).abs() / step.multiplier_B.abs() * mean
        torch.testing.assert_close(step.slope_B.double(), seen, rtol=0.02, atol=0)


def test_one_evaluation_is_the_matrix_sign_less_its_part_along_the_pair():
    M, u, v = momenta(7, 5, seed=1, along=0.2)
    step = solve(M, u, v, evaluations=1)
    phi = exact_sign(M)
    expected = phi - along_pair(phi, u, v)[:, None, None] * u[:, :, None] * v[:, None, :]
    torch.testing.assert_close(step.phi_Bmn, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.excess_B, along_pair(phi, u, v).abs(), rtol=1e-12, atol=0)
    torch.testing.assert_close(step.slope_B, torch.full((3,), COLD_SLOPE).double())


@pytest.mark.parametrize("evaluations", [1, 2, 60])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (1, 6)])
def test_a_momentum_along_the_pair_alone_gives_no_step(evaluations: int, sign: float, shape: tuple[int, int]):
    top = cold_triple(gaussian(1, *shape))
    M = sign * top.u_Bm[:, :, None] * top.v_Bn[:, None, :]
    step = solve(M, top.u_Bm, top.v_Bn, evaluations)
    torch.testing.assert_close(step.phi_Bmn, torch.zeros_like(M), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("evaluations", [1, 2, 60])
def test_a_zero_momentum_gives_no_step_and_disturbs_no_neighbour(evaluations: int, dtype: torch.dtype):
    M, u, v = (x.to(dtype) for x in momenta(6, 5, seed=3, along=0.4))
    alone = solve(M, u, v, evaluations)
    M = torch.cat([torch.zeros(1, 6, 5, dtype=dtype), M])
    beside = solve(M, torch.cat([u[:1], u]), torch.cat([v[:1], v]), evaluations)
    assert torch.equal(beside.phi_Bmn[0], torch.zeros(6, 5, dtype=dtype))
    assert float(beside.slope_B[0]) == pytest.approx(COLD_SLOPE)
    torch.testing.assert_close(beside.phi_Bmn[1:], alone.phi_Bmn, rtol=0, atol=1e-6)


def test_a_batch_is_its_matrices_one_by_one():
    M, u, v = momenta(9, 6, seed=2, along=-0.3, batch=5)
    slope = torch.logspace(-1, 1, 5, dtype=torch.float64)
    whole = solve_from(M, u, v, exact_sign, slope, 3)
    for i in range(5):
        one = solve_from(M[i : i + 1], u[i : i + 1], v[i : i + 1], exact_sign, slope[i : i + 1], 3)
        for field, expected in zip(one, whole, strict=True):
            torch.testing.assert_close(field[0], expected[i], rtol=1e-9, atol=1e-9)


def test_equal_singular_values_of_weight_and_momentum_are_no_trouble():
    top = cold_triple(torch.linalg.qr(gaussian(2, 6, 6)).Q)
    M = unit_frobenius(torch.linalg.qr(gaussian(2, 6, 6, seed=1)).Q)
    for evaluations in (2, 100):
        assert_promises(M, top.u_Bm, top.v_Bn, solve(M, top.u_Bm, top.v_Bn, evaluations), rounding=1e-6)


def test_opposite_pairs_are_one_pair():
    M, u, v = momenta(6, 5, seed=9, along=0.4)
    one, other = (solve(M, s * u, s * v).phi_Bmn for s in (1, -1))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_step_traces_without_reading_the_device():
    # A host read would break the graph: fullgraph refuses .item() and branches on tensors.
    M, u, v = (x.float() for x in momenta(8, 6, seed=4, along=0.2))
    program = make_fx(lambda M, u, v: solve(M, u, v).phi_Bmn, tracing_mode="fake")(M, u, v)
    assert not [node for node in program.graph.nodes if "local_scalar_dense" in str(node.target)]
    torch.testing.assert_close(program(M, u, v), solve(M, u, v).phi_Bmn, rtol=1e-6, atol=1e-6)
