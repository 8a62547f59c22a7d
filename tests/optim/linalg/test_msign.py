"""The matrix sign, compared with its definition by an SVD."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperp.optim import MuonH
from hyperp.optim.linalg.msign import (
    MSIGN_METHODS,
    POLAR_EXPRESS,
    MsignMethod,
    msign,
    quintics,
    resolve_msign_dtype,
    unit_frobenius,
)
from tests.oracles import reference

torch.set_num_threads(1)

SHAPES = [(8, 8), (16, 5), (5, 16), (1, 9), (9, 1), (1, 1)]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_polar_express_table_follows_from_its_definition():
    derived = torch.tensor(reference.polar_express_quintics())
    torch.testing.assert_close(torch.tensor(POLAR_EXPRESS), derived, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize("steps", [1, 3, 5, 8, 11])
def test_polynomial_methods_act_on_singular_values(shape: tuple[int, int], method: MsignMethod, steps: int):
    X = gaussian(*shape)
    expected = reference.polynomial_of_singular_values(X, quintics(method, steps))
    torch.testing.assert_close(msign(X, method, steps), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_is_the_polar_factor(shape: tuple[int, int]):
    X = gaussian(*shape)
    torch.testing.assert_close(msign(X, "svd"), reference.polar_factor(X), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 10**6), st.floats(-2.5, 0))
def test_polar_express_reaches_the_polar_factor_in_float32(m: int, n: int, seed: int, log_smallest: float):
    # Singular values down to a thousandth of the Frobenius norm, the range that the table is made for.
    k = min(m, n)
    U, _ = torch.linalg.qr(gaussian(m, k, seed=seed))
    V, _ = torch.linalg.qr(gaussian(n, k, seed=seed + 1))
    S = torch.logspace(log_smallest, 0, k, dtype=torch.float64)
    S = S.clamp_min(1.1e-3 * S.norm())
    sign = msign((U * S @ V.T).float())
    torch.testing.assert_close(sign.double(), U @ V.T, rtol=0, atol=5e-5)


def test_newton_schulz_leaves_singular_values_near_one():
    S = torch.linalg.svdvals(msign(gaussian(16, 64, dtype=torch.float32), "newton_schulz"))
    assert 0.65 < S.min() < S.max() < 1.25


@pytest.mark.parametrize("method", MSIGN_METHODS)
def test_zero_gives_zero_beside_a_matrix_that_is_not(method: MsignMethod):
    X = torch.stack([torch.zeros(4, 6), gaussian(4, 6, dtype=torch.float32)])
    sign = msign(X, method)
    assert torch.equal(sign[0], torch.zeros(4, 6))
    torch.testing.assert_close(sign[1], msign(X[1], method), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", MSIGN_METHODS)
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-10, 1e10, 1e30, 1e37])
def test_scale_does_not_matter(method: MsignMethod, scale: float):
    # The squares of a momentum that has long decayed are below the smallest float32.
    X = gaussian(6, 4, dtype=torch.float32).clamp(-1, 1)
    scaled = X.double() * scale
    rounding = 1e-5 if scale > 1e-38 else 0.3  # denormals keep a few bits
    torch.testing.assert_close(msign(scaled.float(), method), msign(X, method), rtol=0, atol=rounding)
    assert msign(scaled.float(), method).norm() > 1


@pytest.mark.parametrize("method", MSIGN_METHODS)
def test_rotations_commute_with_the_sign(method: MsignMethod):
    X = gaussian(7, 5)
    Q, P = torch.linalg.qr(gaussian(7, 7, seed=1)).Q, torch.linalg.qr(gaussian(5, 5, seed=2)).Q
    torch.testing.assert_close(msign(Q @ X @ P, method), Q @ msign(X, method) @ P, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(msign(X.T, method), msign(X, method).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", MSIGN_METHODS)
def test_batches_of_any_rank_are_matrices_one_by_one(method: MsignMethod):
    X = gaussian(2, 3, 6, 4)
    sign = msign(X, method)
    assert sign.shape == X.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(sign[i, j], msign(X[i, j], method), rtol=1e-10, atol=1e-10)


def test_svd_leaves_the_null_space_of_a_rank_deficient_matrix_alone():
    X = gaussian(6, 2) @ gaussian(2, 5, seed=1)
    S = torch.linalg.svdvals(msign(X, "svd"))
    torch.testing.assert_close(S, torch.tensor([1.0, 1, 0, 0, 0]).double(), rtol=1e-10, atol=1e-10)


def test_dtype_comes_back_and_bfloat16_products_are_close():
    X = gaussian(8, 12, dtype=torch.float32)
    assert msign(X.bfloat16()).dtype == torch.bfloat16
    low = msign(X, "polar_express", dtype="bfloat16")
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, msign(X), rtol=0, atol=0.05)


def test_unit_frobenius_has_norm_one():
    X = gaussian(3, 4, 5, dtype=torch.float32) * torch.tensor([1e-30, 1.0, 1e30])[:, None, None]
    torch.testing.assert_close(torch.linalg.matrix_norm(unit_frobenius(X)), torch.ones(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "cholesky"}, "msign must be one of .* got 'cholesky'"),
        ({"steps": 0}, "msign_steps must .* got 0"),
        ({"dtype": "int8"}, "msign_dtype must be one of .* got 'int8'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        msign(torch.randn(2, 2), **arguments)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 dimensions, \(\.\.\., m, n\), got shape \(3,\)"):
        msign(torch.randn(3))


def test_polynomials_can_be_differentiated():
    X = gaussian(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: msign(x, "newton_schulz", 2), (X,))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32], "float32"),
        ([torch.bfloat16, torch.float32], "float32"),
        ([torch.float64], "float64"),
        ([torch.float32, torch.float64], None),
    ],
)
def test_the_default_dtype_has_the_name_of_what_products_run_in(dtypes, expected):
    parameters = [torch.zeros(2, 2, dtype=dtype) for dtype in dtypes]
    assert resolve_msign_dtype(None, parameters) == expected
    assert resolve_msign_dtype("bfloat16", parameters) == "bfloat16"


def test_a_run_resumes_with_the_dtype_of_its_matrix_signs():
    """For example from a GPU, whose default is bfloat16, to a CPU, whose default is float32."""
    steps = {}
    for saved in ("bfloat16", "float32", None):
        weight = torch.nn.Parameter(gaussian(8, 8, dtype=torch.float32))
        weight.grad = gaussian(8, 8, seed=1, dtype=torch.float32)
        optimizer = MuonH([weight], lr=0.1)
        state = MuonH([weight], lr=0.1, msign_dtype=saved).state_dict()
        assert state["param_groups"][0]["msign_dtype"] == (saved or "float32")
        optimizer.load_state_dict(state)
        optimizer.step()
        steps[saved] = weight.detach()
    assert torch.equal(steps["float32"], steps[None])
    assert not torch.equal(steps["bfloat16"], steps["float32"])
