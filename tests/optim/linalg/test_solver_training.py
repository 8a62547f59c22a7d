"""The solver in a short training run: the properties that `tangent` and `spectral` claim, in small."""

import pytest
import torch
from torch import Tensor

from hyperp.config import compose, resolve
from hyperp.optim import sphere, sso
from hyperp.optim.linalg.tangent import COLD_SLOPE, diagnosed_tangent_step
from hyperp.optim.rule import RULES
from hyperp.training.trainer import Trainer

torch.set_num_threads(1)
STEPS = 48


@pytest.fixture(scope="module")
def watched() -> dict[str, Tensor]:
    """Every tangent step and every top triple of a short run at a good rate, with one row for each matrix."""
    steps, triples = [], []
    patch = pytest.MonkeyPatch()

    def tangent_step(M, u, v, *rest):
        step, found = diagnosed_tangent_step(M, u, v, *rest)
        part = torch.einsum("bm,bmn,bn->b", u.double(), step.phi_Bmn.double(), v.double())
        value = (M * step.phi_Bmn).sum((1, 2))
        _, at_start = diagnosed_tangent_step(M, u, v, rest[0], rest[1], 1)
        steps.append(
            torch.stack([found.excess_B == 0, part.abs(), found.shortfall_B / value, at_start.excess_B], 1)
        )
        return step

    def warm_triple(W, basis):
        top = true_triple(W, basis)
        norm = torch.linalg.matrix_norm(W, ord=2)
        triples.append(torch.stack([1 - top.sigma_B / norm, norm / (W.shape[1] / W.shape[2]) ** 0.5 - 1], 1))
        return top

    true_triple = sphere.warm_triple
    patch.setattr(sso, "tangent_step", tangent_step)
    patch.setattr(sphere, "warm_triple", warm_triple)
    overrides = ["optim=sso", "scale.width=32", f"scale.tokens={STEPS * 512}", "base_lr=0.01"]
    trainer = Trainer(resolve(compose(overrides)))
    losses = [float(trainer.train_step()) for _ in range(STEPS)]
    patch.undo()
    assert losses[-1] < 0.75 * losses[0]
    slopes = [state["slope"].flatten() for state in trainer.optimizer.state.values() if "slope" in state]
    return {
        "steps": torch.cat(steps).double(),
        "triples": torch.cat(triples).double(),
        "slopes": torch.cat(slopes),
    }


def test_two_matrix_signs_bracket_nearly_every_root_and_are_tangent(watched: dict[str, Tensor]):
    bracketed, part, shortfall, start = watched["steps"].unbind(1)
    assert len(bracketed) == STEPS * 14
    assert start.median() > 0.05  # the matrix sign alone is far from tangent
    assert bracketed.mean() > 0.9
    assert part.max() < 1e-6
    assert shortfall.median() < 0.01
    assert shortfall.quantile(0.95) < 0.05


def test_the_warm_block_holds_the_norm(watched: dict[str, Tensor]):
    low, off = watched["triples"].unbind(1)
    assert low.abs().median() < 1e-4
    assert low.max() < 1e-2
    assert off.abs().median() < 2e-3
    assert off.abs().max() < 2e-2


def test_the_slopes_are_learnt_and_stay_of_the_order_of_one(watched: dict[str, Tensor]):
    assert (watched["slopes"] - COLD_SLOPE).abs().min() > 1e-3
    assert 0.2 < watched["slopes"].min() < watched["slopes"].max() < 20


@pytest.mark.parametrize("name", ["sso", "muonsphere", "muonh"])
def test_an_update_compiles_to_one_graph(name: str):
    rule = RULES[name]()
    W, G = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    state = rule.init(W)
    compiled = torch.compile(rule.update, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(W, G, state, 0.1)[0], rule.update(W, G, state, 0.1)[0])
