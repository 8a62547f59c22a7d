"""Largest singular values from scratch, compared with LAPACK's."""

import math

import pytest
import torch

from hyperp.optim.linalg import norms
from hyperp.optim.linalg.norms import spectral_norm

torch.set_num_threads(1)


@pytest.mark.parametrize("exact", [256, 0])
@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (2, 1, 40), (2, 40, 160), (4, 256, 64), (2, 320, 300), (1, 700, 1024)]
)
def test_spectral_norms_are_the_largest_singular_values(monkeypatch, exact, shape):
    monkeypatch.setattr(norms, "EXACT_COLUMNS", exact)
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(shape, generator=generator)
    U, _, Vh = torch.linalg.svd(gaussian, full_matrices=False)
    crowded = U @ Vh + 0.03 * shape[-1] ** -0.5 * torch.randn(shape, generator=generator)
    few = U[..., :3] @ torch.diag(torch.tensor([3.0, 2.9, 1.0])[: U.shape[-1]]) @ Vh[..., :3, :]
    for W, below in ((gaussian, 1e-3), (crowded, 3e-3), (few, 1e-5)):  # all of these crowd at the top
        error = spectral_norm(W).double() / torch.linalg.svdvals(W.double())[:, 0] - 1
        assert error.max() < 1e-5
        assert error.min() > -below


@pytest.mark.parametrize("exact", [256, 0])
def test_spectral_norms_of_damaged_matrices_damage_no_other(monkeypatch, exact):
    monkeypatch.setattr(norms, "EXACT_COLUMNS", exact)
    W = torch.stack(
        [torch.eye(12), torch.zeros(12, 12), torch.full((12, 12), torch.nan), 3e30 * torch.eye(12)]
    )
    assert spectral_norm(W).tolist() == pytest.approx([1.0, 0.0, math.nan, 3e30], rel=1e-5, nan_ok=True)
