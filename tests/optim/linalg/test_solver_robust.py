"""Robustness: absurd rates, weights that are not finite, and hyperparameters that are not numbers."""

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from hyperp.config import compose, resolve
from hyperp.optim.rule import RULES
from hyperp.training.trainer import Trainer
from tests.optim.optimizers import CLASSES, gaussian

torch.set_num_threads(1)


@pytest.mark.parametrize("msign", ["polar_express", "svd"])
@pytest.mark.parametrize("name", ["sso", "muonsphere", "muonh", "muon"])
@pytest.mark.parametrize("lr", [1e3, 1e18, 1e30, 1e38])
def test_an_absurd_rate_raises_nothing_and_reaches_no_other_matrix(name: str, lr: float, msign: str):
    wild, tame = nn.Parameter(gaussian(6, 5).float()), nn.Parameter(gaussian(6, 5, seed=1).float())
    groups = [{"params": [wild], "lr": lr}, {"params": [tame], "lr": 1e-3}]
    optimizer = CLASSES[name](groups, msign=msign)
    for step in range(5):
        wild.grad, tame.grad = (gaussian(6, 5, seed=10 * step + i).float() for i in range(2))
        optimizer.step()
    assert tame.isfinite().all()


@pytest.mark.parametrize("name", ["sso", "muonsphere", "muonh", "adamh"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_weight_that_was_spoilt_from_outside_raises_nothing_and_disturbs_no_neighbour(
    name: str, value: float
):
    def run(spoil: bool) -> Tensor:
        parameters = [nn.Parameter(gaussian(6, 5, seed=i)) for i in range(2)]
        optimizer = CLASSES[name](parameters, lr=0.1)
        for step in range(4):
            for i, parameter in enumerate(parameters):
                parameter.grad = gaussian(6, 5, seed=10 * step + i)
            if spoil and step == 2:
                parameters[0].data[:] = value
            optimizer.step()
        return parameters[1].detach()

    torch.testing.assert_close(run(spoil=True), run(spoil=False), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sso", "muonsphere"])
def test_a_run_at_an_absurd_rate_is_found_diverged(optimizer: str):
    overrides = [f"optim={optimizer}", "base_lr=1e30", "scale.tokens=8192", "scale.width=32"]
    trainer = Trainer(resolve(compose(overrides)))
    for _ in range(12):
        trainer.train_step()
    assert trainer.divergence.reason(trainer.step) is not None


@pytest.mark.parametrize("name", ["sso", "muonsphere"])
@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (64, 64), (8, 3), (1, 9)])
def test_memory_beyond_the_momentum_is_at_most_sixteen_vectors(name: str, shape: tuple[int, int]):
    parameter = nn.Parameter(gaussian(3, *shape).float())
    optimizer = CLASSES[name]([parameter], lr=0.1)
    optimizer.project_()
    state = optimizer.state[parameter]
    assert state["momentum"].shape == parameter.shape
    beyond = sum(value.nbytes for key, value in state.items() if key != "momentum") / 3
    scalars = 16  # bytes of the slope and of the count of skipped steps
    assert beyond <= 16 * 4 * max(shape) + scalars
    assert (
        sum(value.nbytes for value in state.values()) / 3 <= 4 * (math.prod(shape) + 8 * shape[1]) + scalars
    )


@pytest.mark.parametrize("name", ["sso", "muonsphere", "muonh", "adamh", "muon", "adamw"])
def test_an_update_reads_nothing_from_the_device(name: str):
    # Tracing fails at .item() and at a branch on a tensor.
    rule = RULES[name]()
    W, G = gaussian(3, 24, 16).float(), gaussian(3, 24, 16, seed=1).float()
    state = rule.init(W)
    program = make_fx(lambda W, G, state: rule.update(W, G, state, 0.1)[0], tracing_mode="fake")(W, G, state)
    called = {str(node.target) for node in program.graph.nodes}
    waits = (
        "local_scalar_dense",
        "linalg_eigh",
        "linalg_svd",
        "linalg_qr",
        "linalg_cholesky_ex.check",
        "nonzero",
    )
    assert not [target for target in called if any(word in target for word in waits)]
    torch.testing.assert_close(program(W, G, state), rule.update(W, G, state, 0.1)[0], rtol=1e-4, atol=1e-5)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("sso", {"momentum": "abc"}, "momentum must .* got 'abc'"),
    ("sso", {"momentum": True}, "momentum must .* got True"),
    ("sso", {"momentum": None}, "momentum must .* got None"),
    ("sso", {"radius_factor": True}, "radius_factor must .* got True"),
    ("sso", {"nesterov": "no"}, "nesterov must .* got 'no'"),
    ("sso", {"radius_factor": "2"}, "radius_factor must .* got '2'"),
    ("sso", {"retraction": "soft"}, "retraction must be one of .* got 'soft'"),
    ("sso", {"retraction": ["hard"]}, r"retraction must be one of .* got \['hard'\]"),
    ("sso", {"evaluations": 0}, "evaluations must .* got 0"),
    ("sso", {"evaluations": 2.0}, "evaluations must .* got 2.0"),
    ("sso", {"evaluations": True}, "evaluations must .* got True"),
    ("muonsphere", {"block": "8"}, "block must .* got '8'"),
    ("muonsphere", {"msign_dtype": 32}, "msign_dtype must be one of .* got 32"),
    ("muonh", {"nesterov": 1}, "nesterov must .* got 1"),
    ("muon", {"weight_decay": None}, "weight_decay must .* got None"),
    ("adamw", {"betas": 0.9}, "betas must .* got 0.9"),
    ("adamw", {"betas": ("a", 1)}, r"betas\[0\] must .* got 'a'"),
    ("adamw", {"betas": "ab"}, "betas must .* got 'ab'"),
    ("adamh", {"betas": None}, "betas must .* got None"),
    ("adamh", {"eps": None}, "eps must .* got None"),
    ("adamw", {"eps": False}, "eps must .* got False"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD)
def test_hyperparameters_that_are_no_numbers_are_refused_by_name(
    name: str, arguments: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        CLASSES[name]([nn.Parameter(torch.randn(2, 2))], **arguments)


def test_modules_are_not_hidden_by_functions():
    package = importlib.import_module("hyperp.optim.linalg")
    assert package.msign is importlib.import_module("hyperp.optim.linalg.msign")
