"""Clipping: torch's own for finite gradients, and a damaged gradient harms no other."""

import pytest
import torch
from torch import nn

from hyperp.clipping import clip_gradients

torch.set_num_threads(1)


def parameters(scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2))]
    for parameter in made:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return [*made, nn.Parameter(torch.zeros(2))]  # the last has no gradient


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_finite_gradients_are_clipped_as_torch_clips_them(limit):
    ours, theirs = parameters(), parameters()
    norm = clip_gradients(ours, limit)
    expected = nn.utils.clip_grad_norm_(theirs, limit)
    torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)


def test_zero_clips_nothing():
    ours, before = parameters(100), parameters(100)
    assert clip_gradients(ours, 0) > 100
    assert all(a.grad is None or torch.equal(a.grad, b.grad) for a, b in zip(ours, before, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_gradient_counts_as_zero_for_the_others(bad):
    ours, others = parameters(), parameters()
    ours[0].grad[1, 1] = bad
    others[0].grad = None
    assert not clip_gradients(ours, 0.5).isfinite()
    clip_gradients(others, 0.5)
    assert torch.equal(ours[1].grad, others[1].grad)
    assert torch.equal(ours[2].grad, others[2].grad)
    assert not ours[0].grad.isfinite().all()


def test_mixed_dtypes():
    ours = parameters()
    ours[0].data, ours[0].grad = ours[0].data.bfloat16(), ours[0].grad.bfloat16()
    clip_gradients(ours, 0.5)
    total = torch.stack([p.grad.float().norm() for p in ours if p.grad is not None]).norm()
    assert float(total) == pytest.approx(0.5, rel=1e-2)
