"""Every optimizer against its float64 twin: trajectories by formula, an SVD for every spectral quantity."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hyperp.optim import AdamW
from hyperp.optim.linalg.msign import quintics
from tests.optim.optimizers import CLASSES, gaussian, gradients, run
from tests.oracles import reference

torch.set_num_threads(1)


# Twins: the whole trajectory of one matrix, from the formulas.


def adam_twin(
    W: Tensor, grads: list[Tensor], finish: Callable[[Tensor, Tensor], Tensor], betas: Any
) -> Tensor:
    m = v = torch.zeros_like(W)
    for step, G in enumerate(grads, start=1):
        direction, m, v = reference.adam_direction(m, v, G, step, betas, 1e-8)
        W = finish(W, direction)
    return W


def momentum_twin(W: Tensor, grads: list[Tensor], step: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    M = torch.zeros_like(W)
    for G in grads:
        W, M = step(W, M, G)
    return W


def aspect(W: Tensor) -> float:
    return math.sqrt(W.shape[0] / W.shape[1])


EXACT = {"msign": "svd"}
EXACT_SSO = {**EXACT, "evaluations": 100, "block": 64}


def twin_cases() -> dict[str, tuple[str, dict[str, Any], Callable[[Tensor, list[Tensor]], Tensor]]]:
    """By name of a case: the optimizer, its arguments, and the trajectory by formula."""
    r = reference
    lr = 0.05
    muon_quintics = quintics("newton_schulz", 5)
    polynomial = partial(r.polynomial_of_singular_values, quintics=muon_quintics)

    def sso(radius: Callable[[Tensor], float], length: Callable[[Tensor], float], **rest: Any):
        return lambda W, G: momentum_twin(
            W, G, partial(r.sso_step, lr=lr, radius=radius(W), length=length(W), **{"momentum": 0.9, **rest})
        )

    def muonh(**rest: Any):
        return lambda W, G: momentum_twin(W, G, partial(r.muonh_step, lr=lr, **{"momentum": 0.95, **rest}))

    def muon(scale: Callable[[Tensor], float], **rest: Any):
        return lambda W, G: momentum_twin(
            W, G, partial(r.muon_step, lr=lr, scale=scale(W), **{"momentum": 0.95, **rest})
        )

    def expand(W: Tensor) -> float:
        return math.sqrt(max(1.0, W.shape[0] / W.shape[1]))

    def match_rms(W: Tensor) -> float:
        return 0.2 * math.sqrt(max(W.shape))

    def one(_: Tensor) -> float:
        return 1.0

    return {
        "sso": ("sso", EXACT_SSO, sso(aspect, aspect)),
        "sso, radius 2, no nesterov": (
            "sso",
            {**EXACT_SSO, "radius_factor": 2.0, "nesterov": False, "momentum": 0.7},
            sso(lambda W: 2 * aspect(W), lambda W: 2 * aspect(W), nesterov=False, momentum=0.7),
        ),
        "sso, unit radius": ("sso", {**EXACT_SSO, "radius_mode": "unit"}, sso(one, one)),
        "sso, unit radius, aspect scale": (
            "sso",
            {**EXACT_SSO, "radius_mode": "unit", "scale_mode": "aspect"},
            sso(one, aspect),
        ),
        "sso, original scale": ("sso", {**EXACT_SSO, "scale_mode": "original"}, sso(aspect, expand)),
        "sso, radius 2, original scale": (
            "sso",
            {**EXACT_SSO, "radius_factor": 2.0, "scale_mode": "original"},
            sso(lambda W: 2 * aspect(W), lambda W: 2 * expand(W)),
        ),
        "sso, dynamic": ("sso", {**EXACT_SSO, "retraction": "dynamic"}, sso(aspect, aspect, dynamic=True)),
        "muonsphere, dynamic": (
            "muonsphere",
            {**EXACT, "block": 64, "retraction": "dynamic"},
            sso(aspect, aspect, tangent=False, dynamic=True),
        ),
        "muonsphere, radius 3, unit, aspect scale": (
            "muonsphere",
            {**EXACT, "block": 64, "radius_factor": 3.0, "radius_mode": "unit", "scale_mode": "aspect"},
            sso(lambda W: 3.0, lambda W: 3 * aspect(W), tangent=False),
        ),
        "muonsphere, radius 2, rms scale": (
            "muonsphere",
            {**EXACT, "block": 64, "radius_factor": 2.0, "scale_mode": "match_rms_adamw"},
            sso(lambda W: 2 * aspect(W), lambda W: 2 * match_rms(W), tangent=False),
        ),
        "muonsphere": ("muonsphere", {**EXACT, "block": 64}, sso(aspect, aspect, tangent=False)),
        "muonsphere, rms scale": (
            "muonsphere",
            {**EXACT, "block": 64, "scale_mode": "match_rms_adamw"},
            sso(aspect, match_rms, tangent=False),
        ),
        "muonh": ("muonh", {}, muonh(sign=polynomial)),
        "muonh, exact sign": ("muonh", EXACT, muonh()),
        "muonh, no nesterov": ("muonh", {**EXACT, "nesterov": False}, muonh(nesterov=False)),
        "muon": ("muon", {}, muon(expand, sign=polynomial)),
        "muon, rms scale": (
            "muon",
            {**EXACT, "scale_mode": "match_rms_adamw", "weight_decay": 0.1, "nesterov": False},
            muon(match_rms, weight_decay=0.1, nesterov=False),
        ),
        "adamh": ("adamh", {}, lambda W, G: adam_twin(W, G, partial(r.adamh_step, lr=lr), (0.9, 0.95))),
        "adamw": (
            "adamw",
            {"weight_decay": 0.1, "betas": (0.8, 0.99)},
            lambda W, G: adam_twin(W, G, partial(r.adamw_step, lr=lr, weight_decay=0.1), (0.8, 0.99)),
        ),
    }


CASES = twin_cases()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (1, 7), (7, 1)])
def test_trajectories_equal_those_of_the_twin(case: str, shape: tuple[int, int]):
    name, arguments, twin = CASES[case]
    # Two matrices of one shape form a batch, and a transposed third forms a batch of its own.
    shapes = [shape, shape, shape[::-1]]
    parameters = [nn.Parameter(gaussian(*s, seed=i)) for i, s in enumerate(shapes)]
    grads = [gradients(s, seed=i + 1) for i, s in enumerate(shapes)]
    expected = [twin(p.detach().clone(), g) for p, g in zip(parameters, grads, strict=True)]
    run(CLASSES[name](parameters, lr=0.05, **arguments), parameters, grads)
    for parameter, W in zip(parameters, expected, strict=True):
        # The twin's bisection resolves Phi no better than the square root of rounding allows.
        torch.testing.assert_close(parameter.data, W, rtol=0, atol=1e-6 if name == "sso" else 1e-10)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.integers(1, 10), st.integers(1, 10), st.integers(0, 10**6))
def test_any_shape_and_seed_follows_the_twin(case: str, m: int, n: int, seed: int):
    name, arguments, twin = CASES[case]
    parameter = nn.Parameter(gaussian(m, n, seed=seed))
    grads = gradients((m, n), seed=seed + 1)
    expected = twin(parameter.detach().clone(), grads)
    run(CLASSES[name]([parameter], lr=0.05, **arguments), [parameter], [grads])
    torch.testing.assert_close(parameter.data, expected, rtol=0, atol=1e-5 if name == "sso" else 1e-9)


@pytest.mark.parametrize("name", ["sso", "muonsphere"])
def test_defaults_in_float32_stay_near_the_exact_spectral_trajectory(name: str):
    # The twin uses SVDs in place of eight warm vectors, eight polynomial steps and two matrix signs.
    W = gaussian(32, 24)
    parameter = nn.Parameter(W.float())
    grads = [
        gaussian(32, 24, seed=i) + 2 * gaussian(32, 1, seed=99) @ gaussian(1, 24, seed=98) for i in range(20)
    ]
    tangent = name == "sso"
    step = partial(
        reference.sso_step, lr=0.02, momentum=0.9, radius=aspect(W), length=aspect(W), tangent=tangent
    )
    expected = momentum_twin(W, grads, step)
    run(CLASSES[name]([parameter], lr=0.02), [parameter], [grads])
    distance = (parameter.detach().double() - expected).norm() / expected.norm()
    moved = (expected - W * aspect(W) / torch.linalg.matrix_norm(W, ord=2)).norm() / expected.norm()
    assert distance < 0.05 * moved


def test_adamw_is_torch_adamw():
    mine, theirs = (
        [nn.Parameter(gaussian(5, 3).float()), nn.Parameter(gaussian(4).float())] for _ in range(2)
    )
    grads = [[gaussian(5, 3, seed=i) for i in range(6)], [gaussian(4, seed=i) for i in range(6)]]
    run(AdamW(mine, lr=0.1, weight_decay=0.1), mine, grads)
    torch_adamw = torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
    run(torch_adamw, theirs, grads)  # pyright: ignore[reportArgumentType]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
