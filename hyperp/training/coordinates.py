"""Coordinate check: how large activations are while a run trains, how far they have moved since its start.

arXiv 2203.03466 (appendix on coordinate checking) asks of a parametrization that, after each of the first
steps, neither the coordinates of an activation nor their change since initialisation grow or shrink with
width. `Coordinates` measures both on a probe that is the same for every run on a corpus.

Shape suffixes: P windows of the probe, T positions, D width, V vocabulary.
"""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperp.rundir.metrics import MetricsLog, NoLog
from hyperp.training.trainer import Trainer

FILE = "coordinates.jsonl"
PROBE_TOKENS = 1024  # at most, in one forward pass

# (quantity, block): attention, mlp and residual (the stream after the block) of every block, and the logits.
Key = tuple[str, int | None]


class Coordinates:
    """Rows of `coordinates.jsonl` at step 0 and the steps of `runtime.coordinates`; none if that is empty.

    Every row has step, quantity, layer (none for the logits), and over the probe rms, the root mean square of
    the activation, and change_rms, that of its difference from step 0. A resumed run makes its initial model
    once more to measure changes from, and drops the rows of later steps, which it will reach again.
    """

    def __init__(self, trainer: Trainer, run_dir: Path):
        self.trainer, self.log = trainer, None
        self.steps = frozenset(trainer.config.runtime.coordinates)
        if not self.steps:
            return
        begun = trainer if trainer.step == 0 else Trainer(trainer.config, trainer.corpus)
        self.start = activations(begun)
        main = trainer.ranks.is_main  # every rank measures, since a sharded model needs all of them
        self.log = MetricsLog(run_dir / FILE, trainer.step or -1) if main else NoLog()
        if trainer.step == 0:
            self._write(0, self.start)

    def look(self, step: int) -> None:
        """Write the rows of `step`, which has just been trained, if it is one of those asked for."""
        if step in self.steps:
            self._write(step, activations(self.trainer))

    def close(self) -> None:
        """Close the file."""
        if self.log is not None:
            self.log.close()

    def _write(self, step: int, now: dict[Key, Tensor]) -> None:
        assert self.log is not None
        for (quantity, layer), activation in now.items():
            where: dict[str, Any] = {"quantity": quantity} | ({} if layer is None else {"layer": layer})
            change = activation - self.start[quantity, layer]
            self.log.write(step, **where, rms=rms(activation), change_rms=rms(change))


def rms(x: Tensor) -> float:
    """Root mean square of all elements."""
    return float(x.square().mean().sqrt())


@torch.no_grad()
def activations(trainer: Trainer) -> dict[Key, Tensor]:
    """Activations (P, T, D), and logits (P, T, V), of the probe under the run's precision, as float32.

    What attention and MLP hand over is taken before the residual multiplier.
    """
    found: dict[Key, Tensor] = {}

    def keep(quantity: str, layer: int):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            y_PTD = output[0] if isinstance(output, tuple) else output  # experts come with their routing
            found[quantity, layer] = y_PTD.float()

        return hook

    # A compiled model may have been traced without the hooks.
    eager = torch.compiler.set_stance("force_eager") if trainer.config.runtime.compile else nullcontext()
    with ExitStack() as hooks, trainer.autocast, eager:
        for layer, block in enumerate(trainer.model.blocks):
            parts = {"attention": block.attention, "mlp": block.mlp, "residual": block}
            for quantity, module in parts.items():
                handle = module.register_forward_hook(keep(quantity, layer))  # type: ignore[union-attr]
                hooks.callback(handle.remove)
        logits_PTV = trainer.model(probe(trainer).to(trainer.device))
    found["logits", None] = logits_PTV.float()
    return found


def probe(trainer: Trainer) -> Tensor:
    """Token ids (P, T): windows spread over the held-out ones, the same for every seed and size."""
    x_NT = trainer.held_out[0]
    count = min(len(x_NT), max(1, PROBE_TOKENS // x_NT.shape[1]))
    return x_NT[torch.arange(count) * len(x_NT) // count]
