"""The matrix sign: the orthogonal polar factor U V^T of X = U S V^T, batched, without an SVD.

Shapes: m = d_out rows, n = d_in columns, ... any leading batch dimensions.

An odd polynomial of a matrix acts only on its singular values. So a composition of odd polynomials that moves
(0, 1] towards 1 turns X into its polar factor with matrix products alone:

    X <- a X + b (X X^T) X + c (X X^T)^2 X

Largest deviation of a singular value of the result from 1, Gaussian 256 x 1024: 0.32 for `newton_schulz` in
any dtype (five steps), 2e-7 in float32 and 4e-3 in bfloat16 for `polar_express` (eight steps). With either,
singular values of X/|X|_F below 1e-3 come out below 1.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from hyperp.optim import checks

MsignMethod = Literal["newton_schulz", "polar_express", "svd"]
MSIGN_METHODS: tuple[MsignMethod, ...] = get_args(MsignMethod)
Quintic = tuple[float, float, float]

DEFAULT_STEPS: dict[MsignMethod, int] = {"newton_schulz": 5, "polar_express": 8, "svd": 1}
DTYPES = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

# Muon's quintic (Jordan et al. 2024): the steepest at 0 of those that take (0, 1] to within 0.3 of 1. It does
# not converge.
NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)

# Optimal composition for singular values in [1e-3, 1] (arXiv 2505.16932, table 1 and section 3). A test
# compares these figures with `polar_express_quintics` in tests/oracles/reference.py, which derives them anew.
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.287212018145624, -23.59588651909883, 17.300387312530926),
    (4.1070591115422, -2.9478499167379097, 0.5448431082926601),
    (3.9486908534822938, -2.9089021159629462, 0.551819139437013),
    (3.3184196573706033, -2.4884880243148766, 0.5100489401237206),
    (2.3006520199548186, -1.6689039845747513, 0.4188073119525677),
    (1.8913014077874022, -1.267995827194595, 0.3768040894852521),
    (1.8750014808093542, -1.2500016453117702, 0.3750001645033402),
    (1.875, -1.25, 0.375),
)
# Rounding can lift a singular value above 1, where the early polynomials explode. So all but the last are
# evaluated at x / SAFETY.
SAFETY = 1.01


def msign(
    x: Tensor, method: MsignMethod = "polar_express", steps: int | None = None, dtype: str | None = None
) -> Tensor:
    """Polar factor of every (m, n) matrix in `x` of shape (..., m, n), in the dtype of `x`.

    `steps` defaults to 5 for `newton_schulz` and 8 for `polar_express`; `svd` ignores it. The products run in
    `dtype`: "float32", "bfloat16" or "float64". By default that is bfloat16 on a CUDA device, as in the
    published code (but float64 stays float64), and the dtype of `x`, at least float32, elsewhere. A zero
    matrix gives zero. Raises ValueError for a vector and for what `check_msign` refuses.
    """
    check_msign(method, steps, dtype)
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 dimensions, (..., m, n), got shape {tuple(x.shape)}")
    wide = unit_frobenius(x if x.shape[-2] <= x.shape[-1] else x.mT)
    if method == "svd":
        sign = _svd_polar(wide)
    else:
        steps = DEFAULT_STEPS[method] if steps is None else steps
        sign = _apply_quintics(wide.to(DTYPES[dtype] or _default_dtype(wide)), quintics(method, steps))
    return (sign if x.shape[-2] <= x.shape[-1] else sign.mT).to(x.dtype)


def _default_dtype(x: Tensor) -> torch.dtype:
    return torch.bfloat16 if x.is_cuda and x.dtype == torch.float32 else x.dtype


def resolve_msign_dtype(dtype: str | None, parameters: Iterable[Tensor]) -> str | None:
    """`dtype`, or the name of the dtype that products for these parameters run in by default.

    The default depends on the device; None if it is not the same for all of them.
    """
    if dtype is not None:
        return dtype
    kinds = {(p.device, torch.promote_types(p.dtype, torch.float32)) for p in parameters}
    found = {str(_default_dtype(torch.empty(0, device=d, dtype=t))).removeprefix("torch.") for d, t in kinds}
    return found.pop() if len(found) == 1 else None


def check_msign(method: str, steps: int | None, dtype: str | None) -> None:
    """Raise ValueError for a method, a number of steps or a dtype that `msign` does not know."""
    checks.one_of("msign", method, MSIGN_METHODS)
    checks.one_of("msign_dtype", dtype, DTYPES)
    if steps is not None:
        checks.whole_number("msign_steps", steps, 1)


def quintics(method: MsignMethod, steps: int) -> Sequence[Quintic]:
    """The polynomials that `steps` steps of `method` compose, in order of application."""
    if method == "newton_schulz":
        return (NEWTON_SCHULZ,) * steps
    table = (POLAR_EXPRESS + POLAR_EXPRESS[-1:] * steps)[:steps]
    return (*((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in table[:-1]), table[-1])


def unit_frobenius(x: Tensor) -> Tensor:
    """Every matrix of (..., m, n) over its Frobenius norm, at least in float32; a zero matrix stays zero.

    Dividing by the largest entry first keeps the squares of tiny entries (a momentum that was idle for long)
    and of huge ones in range.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    tiny = torch.finfo(x.dtype).tiny
    largest = torch.maximum(x.amax((-2, -1), keepdim=True), -x.amin((-2, -1), keepdim=True))
    x = x / largest.clamp_min(tiny)
    return x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(tiny)


def _apply_quintics(x: Tensor, polynomials: Sequence[Quintic]) -> Tensor:
    shape = x.shape
    x = x.reshape(-1, *shape[-2:])
    for a, b, c in polynomials:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.reshape(shape)


def _svd_polar(x: Tensor) -> Tensor:
    # LAPACK raises for matrices that are not finite; the polynomials return NaN, and so does this.
    finite = x.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    x = torch.where(finite, x, torch.zeros_like(x))
    U, S, Vh = torch.linalg.svd(x, full_matrices=False)
    noise = S[..., :1] * max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    return torch.where(finite, (U * (noise < S).to(x.dtype).unsqueeze(-2)) @ Vh, torch.nan)
