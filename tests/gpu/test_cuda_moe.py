"""Experts on a CUDA device: grouped products against a loop, no waiting of the host, and determinism."""

from typing import Any

import pytest
import torch

from hyperp.config import compose, resolve
from hyperp.model.grouped import grouped_linear, has_grouped_mm, loop_linear
from hyperp.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
WORDS = (
    "model=moe",
    "scale.width=64",
    "scale.granularity=4",
    "scale.sparsity=4",
    "parametrization=raw",
    "parametrization.init_unembedding_std=0.2",
    "base_lr=0.02",
    "scale.tokens=32768",
    "runtime.device=cuda",
)


@pytest.mark.parametrize("load", [[40, 40, 40, 40], [0, 100, 60, 0], [0, 0, 160, 0], [1, 7, 150, 2]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_grouped_products_and_their_gradients_are_those_of_a_loop(load, dtype):
    g = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(*size, generator=g).to("cuda", dtype) for size in ((160, 64), (4, 32, 64), (160, 32))
    )
    load_E = torch.tensor(load, device="cuda")
    assert has_grouped_mm(x, weight)
    results = []
    for function in (grouped_linear, loop_linear):
        leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        call: Any = function
        y = call(*leaves, load_E)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=2e-1)
    assert results[0][2][load_E == 0].count_nonzero() == 0


@pytest.mark.parametrize("optimizer", ["muonh", "sso"])
def test_experts_learn_in_bfloat16_as_in_float32_on_the_cpu(optimizer):
    losses = []
    for device in ("cuda", "cpu"):
        trainer = Trainer(
            resolve(compose([*WORDS, f"optim={optimizer}", f"runtime.device={device}", "runtime.threads=2"]))
        )
        for _ in range(trainer.config.scale.steps):
            trainer.train_step()
        losses.append(trainer.evaluate())
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_a_forward_and_backward_pass_never_waits_for_the_device():
    trainer = Trainer(resolve(compose([*WORDS, "model.shared_expert=true"])))
    for _ in range(2):
        trainer.train_step()
    x, y = (part.to("cuda") for part in trainer.batches.batch(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._backward([x], [y])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_same_step_twice_gives_the_same_bits():
    weights = []
    for _ in range(2):
        trainer = Trainer(resolve(compose([*WORDS])))
        for _ in range(5):
            trainer.train_step()
        weights.append([p.detach().cpu() for name, p in trainer.model.named_parameters() if "mlp" in name])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
