"""On a CUDA device: bf16 training, compilation, and every optimizer against the same one on the CPU."""

import pytest
import torch

from hyperp.config import compose, resolve
from hyperp.optim import build
from hyperp.training.train import train
from hyperp.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
OPTIMIZERS = ("sso", "muonsphere", "muonh", "adamh", "muon", "adamw")
WORDS = (
    "scale.width=64",
    "parametrization=raw",
    "parametrization.init_unembedding_std=0.2",
    "base_lr=0.02",
    "scale.tokens=32768",
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bf16_training_learns_as_float32_on_the_cpu_does(tmp_path, optimizer):
    losses = {}
    for device in ("cuda", "cpu"):
        config = resolve(
            compose([*WORDS, f"optim={optimizer}", f"runtime.device={device}", "runtime.threads=2"])
        )
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
        trainer = Trainer(resolve(compose([*WORDS, f"runtime.device={device}", "runtime.threads=2"])))
        model = trainer.model
        exact = {name: {"msign_dtype": "float32"} for name in ("sso", "muonsphere", "muonh", "muon")}
        stepper = build(model, optimizer, lr=0.01, options=exact)
        stepper.project_()
        for step in range(3):
            g = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=g).to(device)
            stepper.step()
        weights[device] = {name: p.detach().cpu() for name, p in model.named_parameters()}
    for name, w in weights["cpu"].items():
        torch.testing.assert_close(weights["cuda"][name], w, rtol=2e-3, atol=2e-4 * w.abs().max().item())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_never_waits_for_the_device(optimizer):
    trainer = Trainer(resolve(compose([*WORDS, f"optim={optimizer}", "runtime.device=cuda"])))
    for _ in range(2):
        trainer.train_step()
    for p in trainer.model.parameters():
        p.grad = torch.ones_like(p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_step_follows_a_rate_that_is_a_tensor(optimizer):
    weights = {}
    for captured in (False, True):
        trainer = Trainer(resolve(compose([*WORDS, "runtime.device=cuda"])))
        stepper = build(trainer.model, optimizer, lr=0.01)
        stepper.project_()
        rate = torch.tensor(0.01, device="cuda")
        for group in stepper.param_groups:
            group["lr"] = rate
        parameters = list(trainer.model.parameters())
        generator = torch.Generator().manual_seed(0)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).cuda()
        step = stepper.step
        if captured:
            kept = {k: v.clone() for k, v in trainer.model.state_dict().items()}
            saved = {p: {k: v.clone() for k, v in state.items()} for p, state in stepper.state.items()}
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries make their workspaces before the capture
                stepper.step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                stepper.step()
            trainer.model.load_state_dict(kept)
            for p, state in saved.items():
                for key, value in state.items():
                    stepper.state[p][key].copy_(value)
            step = graph.replay
        for factor in (1.0, 0.5, 0.25):
            rate.fill_(0.01 * factor)
            step()
        weights[captured] = [p.detach().clone() for p in parameters]
    for a, b in zip(weights[False], weights[True], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
