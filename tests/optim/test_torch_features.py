"""What users of torch optimizers expect: closures, gradient scalers, rates as tensors and torch.compile.

A step also reads nothing back from the device, which CUDA graphs require.
"""

import pytest
import torch
from torch import Tensor, nn

from hyperp.optim import TABLE, GroupedOptimizer, build

torch.set_num_threads(1)


def model(device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False)
    return nn.Sequential(*layers, nn.Linear(8, 8)).to(device)


def loss_of(net: nn.Module, step: int, device: str = "cpu") -> Tensor:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).to(device)
    return net(x).square().mean()


def made(name: str, **more) -> tuple[nn.Sequential, GroupedOptimizer]:
    net = model()
    optimizer = build(net, name, lr=0.05, unembedding=[net[-1]], **more)
    optimizer.project_()
    return net, optimizer


def train(net: nn.Module, optimizer: GroupedOptimizer, step=None, steps: int = 4) -> list[Tensor]:
    for i in range(steps):
        optimizer.zero_grad()
        loss_of(net, i).backward()
        (step or optimizer.step)()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("name", TABLE)
def test_a_closure_is_called_once_and_its_loss_returned(name):
    net, optimizer = made(name)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = loss_of(net, len(calls) - 1)
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(4)]
    assert len(calls) == 4
    assert all(loss.requires_grad for loss in losses)
    expected = train(*made(name))
    torch.testing.assert_close([p.detach() for p in net.parameters()], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", TABLE)
def test_a_gradient_scaler_changes_nothing_and_leaves_out_a_step_that_overflowed(name):
    net, optimizer = made(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, i)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1e9)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(
        [p.detach() for p in net.parameters()], train(*made(name)), rtol=1e-5, atol=1e-6
    )

    before = [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    (scaler.scale(loss_of(net, 4)) * torch.inf).backward()
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_a_rate_may_be_a_tensor(name):
    net, optimizer = made(name)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.05, dtype=torch.float64)  # in float32, 0.05 would be another rate
    torch.testing.assert_close(train(net, optimizer), train(*made(name)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("rate", ["number", "tensor"])
def test_a_step_reads_nothing_back_from_the_device(name, rate, monkeypatch):
    """Run on the meta device, where reading a value raises."""
    # The check of the starting matrices reads the device once, before training.
    monkeypatch.setattr("hyperp.optim.sphere._refuse_degenerate", lambda norm: norm)
    net = model("meta")
    optimizer = build(net, name, lr=0.05, unembedding=[net[-1]])
    for i in range(3):
        loss_of(net, i, "meta").backward()
        if rate == "tensor":
            for group in optimizer.param_groups:
                group["lr"] = torch.full((), 0.05, device="meta")
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="meta"):
        bool(next(net.parameters()).sum() > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_a_compiled_step_is_the_same_step(name):
    torch._dynamo.reset()
    net, optimizer = made(name)
    compiled = torch.compile(optimizer.step)
    torch.testing.assert_close(train(net, optimizer, compiled), train(*made(name)), rtol=1e-4, atol=1e-5)
