"""AdamH: Adam's direction on the Frobenius sphere (arXiv 2606.16899, 2603.28743), for the unembedding."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from hyperp.optim.adamw import adam_direction, adam_state, check_adam
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.groups import resolve
from hyperp.optim.rule import Rate, Rule, State, register_rule, rule_of
from hyperp.optim.sphere import FrobeniusSphere
from hyperp.roles import Role


@register_rule
@dataclass(frozen=True)
class AdamHRule(Rule):
    """Decay rates of the two moments, and the term that keeps the division finite."""

    name = "adamh"
    sphere = FrobeniusSphere()
    skip_on_zero_grad = True

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_adam(self.betas, self.eps)

    def init(self, W: Tensor) -> State:
        """Zero moments, and the norm the matrix has now as its radius."""
        return {**adam_state(W), **self.sphere.init(W)}

    def project(self, W: Tensor) -> Tensor:
        """As it is: the sphere goes through it."""
        return self.sphere.project(W)

    def update(self, W: Tensor, G: Tensor, state: State, lr: Rate) -> tuple[Tensor, State]:
        """W <- W - lr radius U/|U|, then rescaled to the radius; U is Adam's bias-corrected direction."""
        direction, moments = adam_direction(G, state, self.betas, self.eps)
        W, _ = self.sphere.retract(self.sphere.step(W, direction, lr, state), state, lr)
        return W, moments


class AdamH(GroupedOptimizer):
    """Adam's direction with every matrix held at the Frobenius norm it started with; no weight decay.

    `params` is a module, whose embeddings and vectors then follow AdamW, or what any torch optimizer takes.
    `lr` is the length of a step over the radius: one rate, or one for each role of a module. `options`
    reaches the other algorithms: {"adamw": {"weight_decay": 0.1}}. `unembedding` marks the output modules of
    a foreign model. `maximize` and `process_group` are those of `GroupedOptimizer`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Mapping[Role, float] = 1e-2,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        unembedding: Iterable[nn.Module] = (),
        maximize: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        rule = rule_of(AdamHRule, locals())
        resolved = resolve(params, lr, rule, options, unembedding)
        super().__init__(**resolved, maximize=maximize, process_group=process_group)
