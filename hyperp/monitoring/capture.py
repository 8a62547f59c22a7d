"""Forward hooks that see what the parts of every block put out during one forward pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hyperp.model.moe import MoE
from hyperp.model.transformer import Block, Transformer

# `residual` is the stream after the block; attention and mlp are taken before their residual multiplier.
Part = Literal["attention", "mlp", "router", "residual"]
# Called as watcher(layer, module, inputs of the module, its output).
Watcher = Callable[[int, nn.Module, tuple[Any, ...], Tensor], None]


@contextmanager
def watch_blocks(
    model: Transformer, watchers: Mapping[Part, Watcher], compiled: bool = False
) -> Iterator[None]:
    """Call a part's watcher, in every layer that has this part, as soon as the part has put out something.

    The hooks are removed at the end. A model that was `compiled` in place runs eagerly until then, since it
    may have been traced without the hooks.
    """
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with ExitStack() as hooks, eager:
        for layer, block in enumerate(cast("list[Block]", list(model.blocks))):
            for part, watcher in watchers.items():
                module = _module_of(block, part)
                if module is not None:
                    hooks.callback(module.register_forward_hook(_hook(layer, watcher)).remove)
        yield


def _module_of(block: Block, part: Part) -> nn.Module | None:
    if part == "router":
        return block.mlp.router if isinstance(block.mlp, MoE) else None
    return {"attention": block.attention, "mlp": block.mlp, "residual": block}[part]


def _hook(layer: int, watcher: Watcher) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # Blocks, and an MLP of experts, put out their routing too.
        watcher(layer, module, inputs, output[0] if isinstance(output, tuple) else output)

    return hook
