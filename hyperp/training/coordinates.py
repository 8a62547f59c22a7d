"""Coordinate check: how large activations are while a run trains, and how far they moved since its start.

arXiv 2203.03466 (appendix on coordinate checking) asks of a parametrization that, after each of the first
steps, neither the coordinates of an activation nor their change since initialisation grow or shrink with
width. `CoordinateCheck` measures both on probe sequences that are the same for every run on a corpus.

Shape suffixes: P windows of the probe, T positions, D width, V vocabulary.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperp.monitoring.capture import Part, Watcher, watch_blocks
from hyperp.rundir.metrics import COORDINATES, MetricsLog, NoLog
from hyperp.training.trainer import Trainer

PROBE_TOKENS = 1024  # at most, in one forward pass
PARTS: tuple[Part, ...] = ("attention", "mlp", "residual")  # measured in every block; logits once

# (quantity, block): one of PARTS and the number of its block, or "logits" and None.
Key = tuple[str, int | None]


class CoordinateCheck:
    """Writes coordinates.jsonl at step 0 and at the steps of `runtime.coordinates`; nothing if it is empty.

    Every row has step, quantity, layer (absent for the logits), rms, the root mean square of the activation
    over the probe, and change_rms, that of its difference from step 0. A resumed run builds its initial model
    again to measure changes from, and drops the rows of later steps, which it will reach again.
    """

    def __init__(self, trainer: Trainer, run_dir: Path):
        self.trainer, self.log = trainer, None
        self.steps = frozenset(trainer.config.runtime.coordinates)
        if not self.steps:
            return
        initial = trainer if trainer.step == 0 else Trainer(trainer.config, trainer.corpus)
        self.start = probe_activations(initial)
        main = trainer.ranks.is_main  # every rank measures, since a sharded model needs all of them
        self.log = MetricsLog(run_dir / COORDINATES, trainer.step or -1) if main else NoLog()
        if trainer.step == 0:
            self._write(0, self.start)

    def measure(self, step: int) -> None:
        """Write the rows of `step`, which the model has just been trained to, if it is one of `steps`."""
        if step in self.steps:
            self._write(step, probe_activations(self.trainer))

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
def probe_activations(trainer: Trainer) -> dict[Key, Tensor]:
    """Activations (P, T, D), and logits (P, T, V), of the probe in the run's precision, as float32.

    Outputs of attention and MLP are taken before the residual multiplier.
    """
    found: dict[Key, Tensor] = {}

    def keep(part: Part, layer: int, module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001
        found[part, layer] = output.float()

    watchers: dict[Part, Watcher] = {part: partial(keep, part) for part in PARTS}
    with trainer.autocast, watch_blocks(trainer.model, watchers, trainer.config.runtime.compile):
        logits_PTV = trainer.model(probe_tokens(trainer).to(trainer.device))
    found["logits", None] = logits_PTV.float()
    return found


def probe_tokens(trainer: Trainer) -> Tensor:
    """Token ids (P, T) of windows spread over the held-out ones, the same for every seed and size."""
    x_NT = trainer.held_out[0]
    count = min(len(x_NT), max(1, PROBE_TOKENS // x_NT.shape[1]))
    return x_NT[torch.arange(count) * len(x_NT) // count]
