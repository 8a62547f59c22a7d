"""Send metrics to Weights & Biases, as well as to `metrics.jsonl`, when `runtime.wandb` names a project."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hyperp.config import Config
from hyperp.rundir.record import Record

log = logging.getLogger(__name__)


def require_wandb(config: Config) -> None:
    """Raise ValueError if the run is to be tracked and the library wandb is not installed."""
    if config.runtime.wandb and find_spec("wandb") is None:
        raise ValueError(
            f"runtime.wandb={config.runtime.wandb} needs the wandb library: "
            "pip install 'hyperp-scaling[wandb]'"
        )


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Flatten a line of the log to numbers that can be plotted.

    Quantities of layers become their maximum, such as `monitors/residual_rms_max`, and those of roles one
    number each, such as `monitors/update_rms/hidden`. Norms of single matrices are left out.
    """
    flat: dict[str, float] = {}
    for name, found in values.items():
        if name == "stability":
            seen = {key: value for key, value in found.items() if key != "matrices"}
            flat |= {f"monitors/{key}": value for key, value in _flatten(seen)}
        elif name == "max_vio":  # of each layer
            flat |= {f"monitors/{key}": value for key, value in _flatten({name: found})}
        else:
            flat[name] = found
    return flat


def _flatten(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, found in values.items():
        if isinstance(found, dict):
            yield from ((f"{name}/{key}", value) for key, value in _flatten(found))
        elif isinstance(found, list):
            end = "" if name.endswith("_max") else "_max"
            yield f"{name}{end}", next((value for value in found if math.isnan(value)), max(found))
        else:
            yield name, found


class Tracker:
    """A W&B run with the id of our run, which a resumed run continues.

    Does nothing if no project is configured, or if not `active`. WANDB_MODE=offline keeps everything in the
    run's folder. After the start, an error of the service ends the tracking, with a warning, but not the
    training.
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
        """Send one line of metrics, as scalars."""
        with self._stop_on_error():
            if self.run is not None:
                self.run.log(scalars(values), step=step)

    def finish(self, record: Record) -> None:
        """Send how the run ended."""
        with self._stop_on_error():
            if self.run is not None:
                ended = {"status": record.status, "loss": record.loss, "reason": record.reason}
                self.run.summary.update(ended)
                self.run.finish(exit_code=int(record.status == "failed"))

    @contextmanager
    def _stop_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library documents none of what it raises
            log.warning("runtime.wandb: tracking has stopped (%s: %s)", type(error).__name__, error)
            self.run = None
