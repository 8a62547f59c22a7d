"""Every optimizer class by name, and steps with given gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from hyperp.optim import SSO, AdamH, AdamW, GroupedOptimizer, Muon, MuonH, MuonSphere

CLASSES: dict[str, Any] = {  # with constructors that differ
    "sso": SSO,
    "muonsphere": MuonSphere,
    "muonh": MuonH,
    "adamh": AdamH,
    "muon": Muon,
    "adamw": AdamW,
}
STEPS = 4


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """A standard normal tensor, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    """Gradients of STEPS steps."""
    return [gaussian(*shape, seed=seed * 1000 + step) for step in range(STEPS)]


def run(optimizer: GroupedOptimizer, parameters: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
    """Step through `grads[parameter][step]`."""
    for step in range(len(grads[0])):
        for parameter, of_parameter in zip(parameters, grads, strict=True):
            parameter.grad = of_parameter[step].to(parameter.dtype)
        optimizer.step()
