"""Clipping: as torch's own for finite gradients; a damaged gradient does not affect the others."""

import pytest
import torch
from torch import nn

from hyperp.training.clipping import clip_gradients

torch.set_num_threads(1)


def gradients(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


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
    torch.testing.assert_close(norm.float(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-6, atol=0)


def test_zero_clips_nothing():
    ours, before = parameters(100), parameters(100)
    assert clip_gradients(ours, 0) > 100
    torch.testing.assert_close(gradients(ours), gradients(before), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_gradient_counts_as_zero_for_the_others(bad):
    ours, others = parameters(), parameters()
    gradients(ours)[0][1, 1] = bad
    others[0].grad = None
    assert not clip_gradients(ours, 0.5).isfinite()
    clip_gradients(others, 0.5)
    torch.testing.assert_close(gradients(ours)[1:], gradients(others), rtol=0, atol=0)
    assert not gradients(ours)[0].isfinite().all()


def test_mixed_dtypes():
    ours = parameters()
    half = gradients(ours)[0].bfloat16()
    ours[0].grad, ours[0].data = None, ours[0].data.bfloat16()
    ours[0].grad = half
    clip_gradients(ours, 0.5)
    total = torch.stack([g.float().norm() for g in gradients(ours)]).norm()
    assert float(total) == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_huge_gradient_is_clipped_and_not_left_out(dtype):
    ours = [nn.Parameter(torch.ones(4, 4, dtype=dtype)), nn.Parameter(torch.ones(4, dtype=dtype))]
    ours[0].grad, ours[1].grad = torch.full((4, 4), 1e25, dtype=dtype), torch.ones(4, dtype=dtype)
    assert float(clip_gradients(ours, 1.0)) == pytest.approx(4e25, rel=1e-2)
    total = torch.stack([g.double().norm() for g in gradients(ours)]).norm()
    assert float(total) == pytest.approx(1.0, rel=1e-2)
