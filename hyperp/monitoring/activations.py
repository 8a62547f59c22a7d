"""Inside the forward pass of a few sequences: sizes, outliers and Z values of every layer.

Shape suffixes
    B  sequences      T  positions      L  layers       D  width
    H  query heads    K  key-value heads                N  head size

A Z value is the mean of the squared log-sum-exp of what a softmax is taken of, as in the z-loss of
arXiv 2202.08906: over experts for the router, over the positions that a query sees for attention. These, and
outliers as entries above 6 times the RMS, are what arXiv 2603.28743 watches.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hyperp.distributed.ranks import Ranks
from hyperp.model.moe import MoE
from hyperp.model.transformer import Attention, Block, Transformer

OUTLIER = 6.0  # times the RMS of the tensor
Found = defaultdict[str, list[Tensor]]
QUERIES = 512  # of a sequence at once, so that long contexts need no T x T scores


@torch.no_grad()
def look_inside(model: Transformer, ids_BT: Tensor, ranks: Ranks | None = None) -> dict[str, Tensor]:
    """One forward pass without gradients; statistics on the device, (L,) each, and `logit_max` ().

    `attention_output` and `mlp_output` are what a block adds, before its residual multiplier; `residual` is
    the stream after the block. Each has `_rms`, `_max` (absolute) and `_outliers` (a share of its entries),
    over all sequences, positions and channels. `attention_z` and `router_z` are Z values, with the largest
    log-sum-exp as `_lse_max`. The hooks are there for this pass alone.

    With several `ranks` all have to call it, each with as many sequences of its own; the statistics are those
    of all of them together, and the same on every rank.
    """
    ranks = ranks or Ranks()
    whole, means, maxima = Found(list), Found(list), Found(list)  # by how the ranks' values become one

    def sizes(name: str, x: Tensor) -> None:
        x = x.float()
        rms = ranks.mean(x.square().mean()).sqrt()
        whole[f"{name}_rms"].append(rms)
        maxima[f"{name}_max"].append(x.abs().amax())
        means[f"{name}_outliers"].append((x.abs() > OUTLIER * rms).float().mean())

    def z_values(name: str, lse: Tensor) -> None:
        means[f"{name}_z"].append(lse.square().mean())
        maxima[f"{name}_lse_max"].append(lse.amax())

    def attention(module: Attention, args: tuple[Tensor, ...], output: Tensor) -> None:
        sizes("attention_output", output)
        z_values("attention", attention_lse(*module.queries_and_keys(*args)))

    def mlp(_: Any, __: Any, output: Any) -> None:
        sizes("mlp_output", output[0] if isinstance(output, tuple) else output)

    def router(_: Any, __: Any, scores: Tensor) -> None:
        z_values("router", scores.logsumexp(dim=-1))

    def block(_: Any, __: Any, output: tuple[Tensor, Any]) -> None:
        sizes("residual", output[0])

    hooks = []
    try:
        for one in model.blocks:
            assert isinstance(one, Block)
            hooks.append(one.attention.register_forward_hook(attention))
            hooks.append(one.mlp.register_forward_hook(mlp))
            hooks.append(one.register_forward_hook(block))
            if isinstance(one.mlp, MoE):
                hooks.append(one.mlp.router.register_forward_hook(router))
        logits_BTV = model(ids_BT)
    finally:
        for hook in hooks:
            hook.remove()
    logit = {"logit_max": logits_BTV.abs().amax().float()}
    if not ranks.is_distributed:
        return stacked(whole) | stacked(means) | stacked(maxima) | logit
    return stacked(whole) | joined(stacked(means), ranks.mean) | joined(stacked(maxima) | logit, largest)


def stacked(found: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The layers' values of every quantity, (L,) each."""
    return {name: torch.stack(values) for name, values in found.items()}


def joined(seen: dict[str, Tensor], join: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What `join` makes of all ranks' values, in one exchange."""
    flat = join(torch.cat([value.reshape(-1) for value in seen.values()]))
    parts = flat.split([value.numel() for value in seen.values()])
    return {name: part.view_as(value) for (name, value), part in zip(seen.items(), parts, strict=True)}


def largest(value: Tensor) -> Tensor:
    """Over all ranks; what is not a number counts as infinite, since a maximum may pass it over."""
    value = value.nan_to_num(torch.inf, torch.inf, -torch.inf)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def attention_lse(q_BTHN: Tensor, k_BTKN: Tensor) -> Tensor:
    """Log-sum-exp (B, H, T) of each query's causal scores q.k / sqrt(N), computed in float32.

    Fused attention does not give its scores away, so they are computed again, QUERIES rows at a time.
    """
    B, T, H, N = q_BTHN.shape
    K = k_BTKN.shape[2]
    with torch.autocast(q_BTHN.device.type, enabled=False):
        q_BKSTN = q_BTHN.float().transpose(1, 2).unflatten(1, (K, H // K)) * N**-0.5
        k_BK1TN = k_BTKN.float().transpose(1, 2).unsqueeze(2)
        parts = []
        for start in range(0, T, QUERIES):
            stop = min(start + QUERIES, T)
            scores = q_BKSTN[..., start:stop, :] @ k_BK1TN[..., :stop, :].mT
            seen = torch.ones(stop - start, stop, dtype=torch.bool, device=scores.device).tril(start)
            parts.append(scores.masked_fill(~seen, -torch.inf).logsumexp(dim=-1))
    return torch.cat(parts, dim=-1).view(B, H, T)
