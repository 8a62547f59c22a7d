"""Statistics of a forward pass of a few sequences: sizes, outliers and Z values of every layer.

Shape suffixes
    B  sequences      T  positions      L  layers       D  width
    H  query heads    K  key-value heads                N  head size

A Z value is the mean square of the log-sum-exp of a softmax's inputs, as in the z-loss of arXiv 2202.08906:
over the experts for the router, over the positions that a query attends to for attention. arXiv 2603.28743
watches these, and outliers, which are entries above 6 times the RMS.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hyperp.distributed.ranks import Ranks
from hyperp.model.transformer import Attention, Transformer
from hyperp.monitoring.capture import Part, Watcher, watch_blocks

OUTLIER_MULTIPLE = 6.0  # times the RMS of the tensor
QUERIES_AT_ONCE = 512  # of a sequence, so that long contexts need no T x T scores
LayerValues = defaultdict[str, list[Tensor]]


@torch.no_grad()
def activation_statistics(
    model: Transformer, ids_BT: Tensor, ranks: Ranks | None = None, compiled: bool = False
) -> dict[str, Tensor]:
    """Run one forward pass without gradients and return its statistics on the device.

    `attention_output` and `mlp_output` are what a block adds, before its residual multiplier; `residual` is
    the stream after the block. Each has `_rms`, `_max` (absolute) and `_outliers` (a share of its entries),
    over all sequences, positions and channels. `attention_z` and `router_z` are Z values, with the largest
    log-sum-exp as `_lse_max`. All have shape (L,), but `logit_max` () for the logits.

    With several `ranks` all of them must call this, each with the same number of its own sequences; the
    statistics are over the sequences of all ranks, and the same on every rank.
    """
    ranks = ranks or Ranks()
    # By what makes one value of those of all ranks: nothing more (they are whole already), mean, maximum.
    whole, means, maxima = LayerValues(list), LayerValues(list), LayerValues(list)

    def add_sizes(name: str, x: Tensor) -> None:
        x = x.float()
        rms = ranks.mean(x.square().mean()).sqrt()
        whole[f"{name}_rms"].append(rms)
        maxima[f"{name}_max"].append(x.abs().amax())
        means[f"{name}_outliers"].append((x.abs() > OUTLIER_MULTIPLE * rms).float().mean())

    def add_z_values(name: str, lse: Tensor) -> None:
        means[f"{name}_z"].append(lse.square().mean())
        maxima[f"{name}_lse_max"].append(lse.amax())

    def attention(_: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        add_sizes("attention_output", output)
        add_z_values("attention", attention_logsumexp(*cast("Attention", module).queries_and_keys(*inputs)))

    def mlp(_: int, __: nn.Module, ___: tuple[Any, ...], output: Tensor) -> None:
        add_sizes("mlp_output", output)

    def router(_: int, __: nn.Module, ___: tuple[Any, ...], scores: Tensor) -> None:
        add_z_values("router", scores.logsumexp(dim=-1))

    def residual(_: int, __: nn.Module, ___: tuple[Any, ...], output: Tensor) -> None:
        add_sizes("residual", output)

    watchers: dict[Part, Watcher] = {
        "attention": attention,
        "mlp": mlp,
        "router": router,
        "residual": residual,
    }
    with watch_blocks(model, watchers, compiled):
        logits_BTV = model(ids_BT)
    logit = {"logit_max": logits_BTV.abs().amax().float()}
    if not ranks.is_distributed:
        return _by_layer(whole) | _by_layer(means) | _by_layer(maxima) | logit
    return (
        _by_layer(whole)
        | _reduce_together(_by_layer(means), ranks.mean)
        | _reduce_together(_by_layer(maxima) | logit, _max_over_ranks)
    )


def _by_layer(values: LayerValues) -> dict[str, Tensor]:
    """Every quantity as one tensor (L,)."""
    return {name: torch.stack(layers) for name, layers in values.items()}


def _reduce_together(values: dict[str, Tensor], reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Reduce all values over the ranks in one exchange."""
    flat = reduce(torch.cat([value.reshape(-1) for value in values.values()]))
    parts = flat.split([value.numel() for value in values.values()])
    return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}


def _max_over_ranks(values: Tensor) -> Tensor:
    """Elementwise maximum over all ranks; NaN counts as infinite, since a maximum may skip it."""
    values = values.nan_to_num(torch.inf, torch.inf, -torch.inf)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def attention_logsumexp(q_BTHN: Tensor, k_BTKN: Tensor) -> Tensor:
    """Log-sum-exp (B, H, T) of each query's causal scores q.k / sqrt(N), computed in float32.

    Fused attention does not return its scores, so this computes them again, QUERIES_AT_ONCE rows at a time.
    """
    B, T, H, N = q_BTHN.shape
    K = k_BTKN.shape[2]
    with torch.autocast(q_BTHN.device.type, enabled=False):
        q_BKSTN = q_BTHN.float().transpose(1, 2).unflatten(1, (K, H // K)) * N**-0.5
        k_BK1TN = k_BTKN.float().transpose(1, 2).unsqueeze(2)
        parts = []
        for start in range(0, T, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, T)
            scores = q_BKSTN[..., start:stop, :] @ k_BK1TN[..., :stop, :].mT
            attended = torch.ones(stop - start, stop, dtype=torch.bool, device=scores.device).tril(start)
            parts.append(scores.masked_fill(~attended, -torch.inf).logsumexp(dim=-1))
    return torch.cat(parts, dim=-1).view(B, H, T)
