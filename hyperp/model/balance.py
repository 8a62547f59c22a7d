"""How evenly tokens are spread over experts: a loss that favours it, and MaxVio, a measure of it.

Shape suffixes: L layers, E routed experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperp.model.moe import Routing


def stack_loads(routings: Sequence[Routing]) -> Tensor:
    """Tokens of every expert (L, E), int64; add the loads of several batches or ranks for those of all."""
    return torch.stack([routing.load_E for routing in routings])


def balance_loss(routings: Sequence[Routing], load_LE: Tensor) -> Tensor:
    """Switch's loss (arXiv 2101.03961), summed over layers: E sum_e f_e p_e, each 1 at perfect balance.

    f is the share of each expert in `load_LE`, which has no gradient and may count more tokens than those of
    `routings`: other micro-batches of the step, and other ranks. p is the mean probability over the tokens of
    `routings`. The loss is linear in p, so its mean over equal parts of a batch, each with the load of the
    whole batch, is the loss of the whole batch.
    """
    probability_LE = torch.stack([routing.probability_E for routing in routings])
    p_LE = probability_LE / probability_LE.detach().sum(dim=-1, keepdim=True)
    f_LE = load_LE / load_LE.sum(dim=-1, keepdim=True)
    return load_LE.shape[-1] * (f_LE * p_LE).sum()


def max_vio(load_LE: Tensor) -> Tensor:
    """MaxVio (arXiv 2408.15664) of every layer (L,): largest load over the mean load, minus one; float64."""
    load_LE = load_LE.double()
    return load_LE.amax(dim=-1) / load_LE.mean(dim=-1) - 1


class LoadMonitor:
    """MaxVio of every layer over the steps of a run: recent mean, mean and maximum.

    The state stays on the device; only `take_mean` and `summary` make the host wait for it.
    """

    def __init__(self, layers: int, device: torch.device):
        # rows: sum and number of steps since the last take, sum and number of all steps, largest
        self.state_5L = torch.zeros(5, layers, dtype=torch.float64, device=device)

    def update(self, load_LE: Tensor) -> None:
        """Add one step."""
        recent, steps, total, all_steps, largest = self.state_5L.unbind()
        vio = max_vio(load_LE)
        largest = torch.maximum(largest, vio)
        self.state_5L = torch.stack((recent + vio, steps + 1, total + vio, all_steps + 1, largest))

    def take_mean(self) -> list[float]:
        """Mean MaxVio of every layer over the steps since the last call."""
        recent, steps = self.state_5L[:2].clone()
        self.state_5L[:2] = 0.0
        return (recent / steps).tolist()

    def summary(self) -> dict[str, list[float]]:
        """Mean and maximum of every layer over all steps; empty before the first step."""
        _, _, total, all_steps, largest = self.state_5L
        if not all_steps.any():
            return {}
        return {"mean": (total / all_steps).tolist(), "largest": largest.tolist()}
