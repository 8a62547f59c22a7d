"""Multiply rows by the matrix of their group, and move rows into groups and back.

All of this is deterministic, also on a GPU: rows are only gathered, never scattered, in both passes.

Shape suffixes
    R  rows, sorted by group     E  groups (experts)         O  d_out         D  d_in
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_grouped_mm = torch._grouped_mm  # pyright: ignore[reportPrivateImportUsage]
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_ALIGNMENT = 16  # grouped_mm needs rows whose length is a multiple of so many bytes


def grouped_linear(x_RD: Tensor, weight_EOD: Tensor, load_E: Tensor) -> Tensor:
    """(R, O): the first load_E[0] rows times the first matrix transposed, the next rows times the second, ...

    `load_E` (int64) sums to R; groups may be empty. Uses one grouped matrix product where the device has it,
    and a loop over the groups elsewhere. Under autocast both operands are cast, as in a linear layer.
    """
    dtype = compute_dtype(x_RD)
    x_RD, weight_EOD = x_RD.to(dtype), weight_EOD.to(dtype)
    if not has_grouped_mm(x_RD, weight_EOD):
        return loop_linear(x_RD, weight_EOD, load_E)  # pyright: ignore[reportCallIssue]
    if torch.compiler.is_compiling() and dtype != torch.bfloat16:  # torch traces it in bfloat16 only
        return _uncompiled(x_RD, weight_EOD, load_E)  # pyright: ignore[reportCallIssue]
    return _GroupedLinear.apply(x_RD, weight_EOD, load_E)  # pyright: ignore


@torch.compiler.disable
def _uncompiled(x_RD: Tensor, weight_EOD: Tensor, load_E: Tensor) -> Tensor:
    return _GroupedLinear.apply(x_RD, weight_EOD, load_E)  # pyright: ignore


@torch.compiler.disable  # or it is compiled again for every load
def loop_linear(x_RD: Tensor, weight_EOD: Tensor, load_E: Tensor) -> Tensor:
    """`grouped_linear` as a loop over the groups; the host waits for `load_E`."""
    groups = zip(x_RD.split(load_E.tolist()), weight_EOD.unbind(), strict=True)
    return torch.cat([F.linear(x, weight) for x, weight in groups])


def has_grouped_mm(x_RD: Tensor, weight_EOD: Tensor) -> bool:
    """Whether torch has a grouped product for these operands; its kernels need rows of whole 16 bytes."""
    if x_RD.dtype not in _DTYPES or x_RD.dtype != weight_EOD.dtype:
        return False
    if any(size * x_RD.element_size() % _ALIGNMENT for size in weight_EOD.shape[1:]):
        return False
    if x_RD.device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(x_RD.device) >= (8, 0)
    return x_RD.device.type == "cpu"


class _GroupedLinear(torch.autograd.Function):
    """With its own backward pass, since torch's leaves gradients of empty groups unset on some devices."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_EOD: Tensor, load_E: Tensor) -> Tensor:
        ends_E = load_E.cumsum(0).to(torch.int32)
        ctx.save_for_backward(x_RD, weight_EOD, load_E, ends_E)
        return _grouped_mm(x_RD, weight_EOD.mT, offs=ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_RD, weight_EOD, load_E, ends_E = ctx.saved_tensors
        grad_RO = grads[0].contiguous()
        grad_RD = _grouped_mm(grad_RO, weight_EOD, offs=ends_E)
        grad_EOD = _grouped_mm(grad_RO.mT, x_RD, offs=ends_E)
        # Empty groups: github.com/pytorch/pytorch/issues/172439, not zero and possibly not finite.
        return grad_RD, grad_EOD.masked_fill((load_E == 0)[:, None, None], 0.0), None


def gather_rows(x: Tensor, index_R: Tensor, inverse_R: Tensor, copies: int = 1) -> Tensor:
    """Rows index_R // copies of x (R / copies, D); `index_R` is a permutation and `inverse_R` its inverse.

    The backward pass gathers by the inverse and sums the copies. That of plain indexing would add to rows in
    an order that changes from run to run.
    """
    return _GatherRows.apply(x, index_R, inverse_R, copies)  # pyright: ignore[reportReturnType]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index_R: Tensor, inverse_R: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.copies = copies
        return x.index_select(0, index_R if copies == 1 else index_R // copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_R,) = ctx.saved_tensors
        grad = grads[0].index_select(0, inverse_R)
        if ctx.copies > 1:
            grad = grad.unflatten(0, (-1, ctx.copies)).sum(dim=1)
        return grad, None, None, None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer would compute on `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
