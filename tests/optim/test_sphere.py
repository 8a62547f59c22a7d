"""Spheres: projection before training, steps of a known length, and retractions."""

import math

import pytest
import torch
from torch import Tensor

from hyperp.optim.linalg.msign import msign
from hyperp.optim.linalg.spectral import cold_triple
from hyperp.optim.rule import SphereError
from hyperp.optim.sphere import FrobeniusSphere, Retraction, SpectralSphere, Sphere
from tests.optim.optimizers import gaussian

torch.set_num_threads(1)

SHAPES = [(4, 4), (9, 3), (3, 9), (1, 5), (5, 1)]
SPHERES: dict[str, Sphere] = {
    "frobenius": FrobeniusSphere(),
    "spectral": SpectralSphere(),
    "spectral, radius 2": SpectralSphere(factor=2.0),
    "spectral, unit": SpectralSphere(mode="unit"),
}


def norm_over_radius(name: str, W: Tensor, start: Tensor) -> Tensor:
    """Norm of W over the radius of the sphere that `start` belongs to; 1 on that sphere."""
    if name == "frobenius":
        return torch.linalg.matrix_norm(W) / torch.linalg.matrix_norm(start)
    m, n = W.shape[-2:]
    radius = {"spectral": math.sqrt(m / n), "spectral, radius 2": 2 * math.sqrt(m / n), "spectral, unit": 1.0}
    return torch.linalg.matrix_norm(W, ord=2) / radius[name]


@pytest.mark.parametrize("name", SPHERES)
@pytest.mark.parametrize("shape", SHAPES)
def test_projection_reaches_the_sphere_along_the_ray_and_is_idempotent(name: str, shape: tuple[int, int]):
    W = gaussian(3, *shape)
    on = SPHERES[name].project(W)
    ones = torch.ones(3).double()
    torch.testing.assert_close(norm_over_radius(name, on, W), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(SPHERES[name].project(on), on, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(
        torch.linalg.matrix_norm(W)[:, None, None] * on, torch.linalg.matrix_norm(on)[:, None, None] * W
    )


@pytest.mark.parametrize("name", SPHERES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.3, 2.0])
def test_a_retraction_undoes_what_a_step_did_to_the_norm(name: str, shape: tuple[int, int], lr: float):
    sphere = SPHERES[name]
    start = sphere.project(gaussian(3, *shape))
    state = sphere.init(start)
    moved = sphere.step(start, msign(gaussian(3, *shape, seed=1)), lr, state)
    back, _ = sphere.retract(moved, state, lr)
    # All of these have at most eight singular values: the block finds the largest exactly.
    torch.testing.assert_close(norm_over_radius(name, back, start), torch.ones(3).double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SPHERES)
def test_the_rate_is_the_length_of_a_step_over_the_radius(name: str):
    sphere = SPHERES[name]
    start = sphere.project(gaussian(3, 6, 4))
    moved = sphere.step(start, msign(gaussian(3, 6, 4, seed=1)), 0.01, sphere.init(start))
    length = norm_over_radius(name, moved - start, start)
    torch.testing.assert_close(length, torch.full((3,), 0.01).double(), rtol=1e-5, atol=0)


def test_a_frobenius_step_ignores_the_length_of_its_direction():
    sphere, W, direction = FrobeniusSphere(), gaussian(3, 5, 4), gaussian(3, 5, 4, seed=1)
    state = sphere.init(W)
    one, other = (sphere.step(W, factor * direction, 0.1, state) for factor in (1, 1e3))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [0.0, 1e-30])
def test_a_frobenius_step_along_next_to_nothing_is_none(length: float):
    sphere, W = FrobeniusSphere(), gaussian(3, 5, 4).float()
    assert torch.equal(sphere.step(W, length * gaussian(3, 5, 4, seed=1).float(), 0.1, sphere.init(W)), W)


def test_a_spectral_retraction_knows_the_top_pair_and_keeps_a_block_for_the_next():
    W, sphere = gaussian(3, 5, 4), SpectralSphere()
    on, place = sphere.retract(W, sphere.init(gaussian(3, 5, 4, seed=1)), lr=0.1)
    image = (on @ place["v"][..., None]).squeeze(-1)
    torch.testing.assert_close(image, math.sqrt(5 / 4) * place["u"], rtol=0, atol=1e-10)
    assert place["basis"].shape == sphere.init(W)["basis"].shape == (3, 4, 4)


@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_a_dynamic_retraction_goes_towards_the_sphere_by_a_twentieth_of_the_rate(lr: float):
    sphere = SpectralSphere(retraction="dynamic")
    on = sphere.project(gaussian(2, 5, 4))
    W = on * torch.tensor([0.5, 2.0]).double()[:, None, None]
    back, _ = sphere.retract(W, sphere.init(W), lr)
    factor = 1 + 0.05 * lr * torch.tensor([1.0, -1.0]).double()[:, None, None]
    torch.testing.assert_close(back, W * factor, rtol=1e-12, atol=0)


@pytest.mark.parametrize("retraction", ["hard", "dynamic"])
@pytest.mark.parametrize("sphere", ["frobenius", "spectral"])
def test_a_matrix_that_is_not_finite_stays_so_without_an_error_and_alone(sphere: str, retraction: Retraction):
    chosen = FrobeniusSphere() if sphere == "frobenius" else SpectralSphere(retraction=retraction)
    W = gaussian(4, 5, 4)
    state = chosen.init(W)
    alone, _ = chosen.retract(W[3:], {key: value[3:] for key, value in state.items()}, 0.1)
    too_long = 1e300 if retraction == "hard" else math.inf  # a dynamic retraction leaves 1e300 finite
    W[0, 1, 1], W[1, 2, 2], W[2] = math.nan, math.inf, too_long
    back, _ = chosen.retract(W, state, 0.1)
    assert not back[:3].isfinite().all(-1).all(-1).any()
    torch.testing.assert_close(back[3:], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sphere", [FrobeniusSphere(), SpectralSphere()])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_matrix_without_a_place_is_refused(sphere: Sphere, value: float):
    W = gaussian(2, 3, 3)
    W[1] = value
    for place in (sphere.init, sphere.project):
        with pytest.raises(SphereError, match=r"must .* got norms"):
            place(W)


def test_the_warm_block_of_a_large_matrix_is_near_enough_to_retract_by():
    W, sphere = gaussian(2, 48, 64).float(), SpectralSphere()
    W = sphere.project(W)
    state = sphere.init(W)
    for step in range(30):
        W, place = sphere.retract(W, state, 0.02)
        state = {"basis": place["basis"]}
        true = cold_triple(W)
        assert (norm_over_radius("spectral", W, W) - 1).abs().max() < 0.02
        assert ((place["v"] * true.v_Bn).sum(-1).abs() > 0.3).all()
        W = sphere.step(W, msign(gaussian(2, 48, 64, seed=step).float()), 0.02, state)
