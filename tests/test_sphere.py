"""What a sphere promises: projection onto it, and steps that stay on it."""

import pytest
import torch

from hyperp.optim.spectral import cold_triple
from hyperp.optim.sphere import FrobeniusSphere, SpectralSphere, Sphere

torch.set_num_threads(1)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


RADII = torch.tensor([0.5, 1.0, 7.0]).double()


@pytest.mark.parametrize("sphere", [FrobeniusSphere(), SpectralSphere()])
@pytest.mark.parametrize("shape", [(4, 4), (9, 3), (3, 9), (1, 5)])
def test_projection_reaches_the_sphere_along_the_ray_and_is_idempotent(
    sphere: Sphere, shape: tuple[int, int]
):
    W = gaussian(3, *shape)
    on = sphere.project(W, RADII)
    torch.testing.assert_close(sphere.norm(on), RADII, rtol=1e-12, atol=0)
    torch.testing.assert_close(sphere.project(on, RADII), on, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(on * W.norm(dim=(1, 2), keepdim=True) / on.norm(dim=(1, 2), keepdim=True), W)


def test_norms_are_what_they_are_called():
    W = gaussian(3, 5, 4)
    S = torch.linalg.svdvals(W)
    torch.testing.assert_close(SpectralSphere().norm(W), S[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(FrobeniusSphere().norm(W), S.square().sum(1).sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.3, 2.0])
def test_a_frobenius_step_stays_on_the_sphere_and_ignores_the_length_of_its_direction(lr: float):
    W, direction = FrobeniusSphere().project(gaussian(3, 5, 4), RADII), gaussian(3, 5, 4, seed=1)
    moved = FrobeniusSphere().step(W, direction, lr, RADII)
    torch.testing.assert_close(FrobeniusSphere().norm(moved), RADII, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        moved, FrobeniusSphere().step(W, 1e3 * direction, lr, RADII), rtol=1e-10, atol=1e-12
    )


def test_a_small_frobenius_step_has_the_angle_of_its_rate():
    W = FrobeniusSphere().project(gaussian(3, 5, 4), RADII)
    across = gaussian(3, 5, 4, seed=1)
    across = across - W * ((across * W).sum((1, 2)) / RADII**2)[:, None, None]
    moved = FrobeniusSphere().step(W, across, 1e-3, RADII)
    angle = torch.acos((moved * W).sum((1, 2)) / RADII**2)
    torch.testing.assert_close(angle, torch.full((3,), 1e-3).double(), rtol=1e-4, atol=0)


def test_spectral_retraction_returns_the_triple_of_its_result():
    W = gaussian(3, 5, 4)
    basis = cold_triple(gaussian(3, 5, 4, seed=1)).basis_Bnk
    on, top = SpectralSphere().retract(W, basis, RADII)
    torch.testing.assert_close(SpectralSphere().norm(on), RADII, rtol=1e-10, atol=0)
    torch.testing.assert_close(top.sigma_B, RADII, rtol=0, atol=0)
    image = (on @ top.v_Bn[..., None]).squeeze(-1)
    torch.testing.assert_close(image, top.sigma_B[:, None] * top.u_Bm, rtol=0, atol=1e-10)
