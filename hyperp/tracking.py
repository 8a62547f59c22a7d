"""Metrics to Weights & Biases, beside `metrics.jsonl`, when `runtime.wandb` names a project."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hyperp.config import Config
from hyperp.record import Record

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Raise ValueError if the run is to be tracked and the library is not here."""
    if config.runtime.wandb and find_spec("wandb") is None:
        raise ValueError(
            f"runtime.wandb={config.runtime.wandb} needs the wandb library: "
            "pip install 'hyperp-scaling[wandb]'"
        )


class Tracker:
    """One W&B run under the id of ours; a resumed run goes on in it. Does nothing without a project,
    or if not `active`.

    WANDB_MODE=offline keeps everything in the run's folder. Once it has begun, an error of the service ends
    the tracking, with a warning, and never the training.
    """

    def __init__(self, config: Config, run_dir: Path, active: bool = True):
        self.run: Any = None
        if active and config.runtime.wandb:
            import wandb  # pyright: ignore[reportMissingImports]

            self.run = wandb.init(
                project=config.runtime.wandb,
                id=config.run_id(),
                dir=run_dir,
                config=config.identity(),
                resume="allow",
                settings=wandb.Settings(silent=True),
            )

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Send one line of metrics."""
        with self._guard():
            if self.run is not None:
                self.run.log(values, step=step)

    def finish(self, record: Record) -> None:
        """Send how the run ended."""
        with self._guard():
            if self.run is not None:
                ended = {"status": record.status, "loss": record.loss, "reason": record.reason}
                self.run.summary.update(ended)
                self.run.finish(exit_code=int(record.status == "failed"))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library documents none of what it raises
            log.warning("runtime.wandb: tracking has stopped (%s: %s)", type(error).__name__, error)
            self.run = None
