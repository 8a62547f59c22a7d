"""Mixture of experts: token-choice routing that drops no tokens, and gates that keep the output's size.

Shape suffixes
    P  tokens                    E  routed experts           K  experts chosen for a token
    R  rows, P x K, by expert    D  width (d_model)          F  hidden width of one expert

At granularity k and sparsity S a token uses k of k S experts, each 1/k as wide as the dense MLP (`Experts` in
`hyperp.flops`). A shared expert counts among the k and the k S, as in arXiv 2603.28743: the router then
chooses k - 1 of k S - 1.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperp.flops import Experts
from hyperp.model.grouped import compute_dtype, gather_rows, grouped_linear
from hyperp.roles import Role


class Routing(NamedTuple):
    """How the tokens of one layer were routed, as sums, so that those of several batches or ranks add up.

    `load_E` is how many tokens chose each expert (int64). `probability_E` is the sum over the tokens of the
    softmax over all experts (float32); through it the balance loss trains the router.
    """

    load_E: Tensor
    probability_E: Tensor


class Router(nn.Module):
    """Scores (P, E) of every expert for every token, in float32 even under autocast."""

    param_roles: ClassVar[dict[str, Role]] = {"weight": "router"}

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x_PD: Tensor) -> Tensor:
        dtype = torch.promote_types(x_PD.dtype, torch.float32)
        with torch.autocast(x_PD.device.type, enabled=False):
            return F.linear(x_PD.to(dtype), self.weight.to(dtype))


class RoutedExperts(nn.Module):
    """SwiGLU experts (arXiv 2002.05202) with three matrices each, for rows that are sorted by expert."""

    param_roles: ClassVar[dict[str, Role]] = {"gate": "expert", "up": "expert", "down": "expert"}

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, hidden, width))
        self.up = nn.Parameter(torch.empty(experts, hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x_RD: Tensor, load_E: Tensor) -> Tensor:
        h_RF = F.silu(grouped_linear(x_RD, self.gate, load_E)) * grouped_linear(x_RD, self.up, load_E)
        return grouped_linear(h_RF, self.down, load_E)


class MoE(nn.Module):
    """Sum over the K best experts of a token, weighted by the softmax over their scores.

    With `sqrt_gate` (SqrtGate, arXiv 2603.28743) the weights are the square roots of that softmax: their
    squares sum to 1, so the output of K independent experts is as large as that of one, for every K; the
    shared expert and the routed ones are each multiplied by 1/sqrt(2). Without `sqrt_gate` the weights sum to
    1, the routed output shrinks as 1/sqrt(K), and the shared expert is added unscaled.
    """

    def __init__(self, width: int, sizes: Experts, sqrt_gate: bool, shared: nn.Module | None = None):
        super().__init__()
        assert sizes.shared == (shared is not None)
        self.active, self.sqrt_gate = sizes.active, sqrt_gate
        self.router = Router(width, sizes.routed)
        self.experts = RoutedExperts(width, sizes.hidden, sizes.routed)
        self.shared = shared

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_PD = x_BTD.flatten(0, -2)
        scores_PE = self.router(x_PD)
        best_PK, expert_PK = scores_PE.topk(self.active, dim=-1)
        gate_PK = best_PK.softmax(dim=-1)
        if self.sqrt_gate:
            gate_PK = gate_PK.sqrt()
        load_E = expert_load(expert_PK, scores_PE.shape[-1])
        y_PD = self._routed(x_PD, expert_PK, gate_PK, load_E)
        if self.shared is not None:
            y_PD = y_PD + self.shared(x_PD)
            if self.sqrt_gate:
                y_PD = y_PD * 0.5**0.5
        return y_PD.view_as(x_BTD), Routing(load_E, scores_PE.softmax(dim=-1).sum(dim=0))

    def _routed(self, x_PD: Tensor, expert_PK: Tensor, gate_PK: Tensor, load_E: Tensor) -> Tensor:
        row_of_slot, slot_of_row = sort_by_expert(expert_PK)
        x_PD = x_PD.to(compute_dtype(x_PD))
        x_RD = gather_rows(x_PD, slot_of_row, row_of_slot, copies=self.active)
        y_RD = self.experts(x_RD, load_E)
        y_PKD = gather_rows(y_RD, row_of_slot, slot_of_row).unflatten(0, (-1, self.active))
        return (y_PKD * gate_PK.unsqueeze(-1).to(y_PKD.dtype)).sum(dim=1)


def expert_load(expert_PK: Tensor, experts: int) -> Tensor:
    """How many tokens chose each expert (E,), int64. The host does not wait for the device."""
    chosen_R = expert_PK.flatten()
    zeros_E = torch.zeros(experts, dtype=torch.int64, device=chosen_R.device)
    return zeros_E.scatter_add(0, chosen_R, torch.ones_like(chosen_R))


def sort_by_expert(expert_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the choices of all tokens by expert. Returns two permutations (R,), each the inverse of the other.

    Slot p K + j is the j-th choice of token p; rows are the slots sorted by expert, those of one expert in
    the order of their tokens. The results are the row of every slot and the slot of every row.
    """
    slot_of_row = expert_PK.flatten().argsort(stable=True)
    rows = torch.arange(len(slot_of_row), device=slot_of_row.device)
    return torch.empty_like(slot_of_row).scatter(0, slot_of_row, rows), slot_of_row
