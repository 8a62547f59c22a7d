"""On a CUDA device: bf16 training, compilation, and every optimizer beside its CPU self."""

import pytest
import torch

from hyperp.config import compose, resolve
from hyperp.optim import build
from hyperp.train import train
from hyperp.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
OPTIMIZERS = ("sso", "muonsphere", "muonh", "adamh", "muon", "adamw")
WORDS = ("scale.width=64", "parametrization=raw", "parametrization.init_unembedding_std=0.2", "base_lr=0.02")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bf16_training_learns_as_float32_on_the_cpu_does(tmp_path, optimizer):
    losses = {}
    for device in ("cuda", "cpu"):
        config = resolve(compose([*WORDS, f"optim={optimizer}", f"runtime.device={device}"]))
        losses[device] = train(config, tmp_path / device).loss
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.03)


def test_a_compiled_model_gives_the_same_loss(tmp_path):
    config = resolve(compose([*WORDS, "precision=float32"]))
    compiled = resolve(compose([*WORDS, "precision=float32", "runtime.compile=true"]))
    assert compiled.run_id() == config.run_id()
    one, two = train(config, tmp_path / "a"), train(compiled, tmp_path / "b")
    assert two.loss == pytest.approx(one.loss, rel=0.01)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_on_cuda_is_the_step_on_the_cpu(optimizer):
    weights = {}
    for device in ("cpu", "cuda"):
        trainer = Trainer(resolve(compose([*WORDS, f"runtime.device={device}"])))
        model = trainer.model
        stepper = build(model, optimizer, lr=0.01)
        stepper.project_()
        for step in range(3):
            g = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=g).to(device)
            stepper.step()
        weights[device] = {name: p.detach().cpu() for name, p in model.named_parameters()}
    for name, w in weights["cpu"].items():
        torch.testing.assert_close(weights["cuda"][name], w, rtol=2e-3, atol=2e-4 * w.abs().max().item())
