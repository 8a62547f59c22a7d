"""What one run leaves behind: `record.json`, written once, atomically, when the run has ended."""

import json
import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hyperp.files import write_json
from hyperp.run_table import ENDED
from hyperp.scale import Scale

log = logging.getLogger(__name__)

SCHEMA = 1
METRIC = "held-out loss, nats per token"
CAUSES = (  # of a failure: an exception, an exit code, a signal, ...
    "raised",
    "exited",
    "killed",
    "out_of_memory",
    "timed_out",
    "preempted",
    "node_failed",
    "cancelled",
    "rank_lost",  # another process of the run was lost, and nobody has seen to what
)


@dataclass(frozen=True)
class Record:
    """One ended run. `loss` is nats per token on the held-out set and is a number only if it finished.

    `lr` is the peak rate of the hidden matrices after every factor, `base_lr` the rate before them, `factors`
    the factors of every role and `algorithms` its algorithm with every option, defaults included; `config` is
    the whole resolved configuration, of which `run_id` is the hash. `bits_per_byte` takes the bytes a token
    of the whole corpus. `epochs` is the tokens trained over those that the corpus has to train on. `max_vio`
    has the mean and the largest MaxVio of the run's steps, one number a layer; empty for a dense model.
    `stability` is `StabilityMonitors.summary()`, empty if the run was not monitored.
    `cause` is one of CAUSES for a run that failed; null in records that were written before there were any.
    """

    run_id: str
    status: str
    optimizer: str
    parametrization: str
    schedule: str
    data: str
    scale: dict[str, int]
    seed: int
    lr: float
    base_lr: float
    config: dict[str, Any]
    factors: dict[str, dict[str, float]] = field(default_factory=dict)
    algorithms: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str | None = None
    cause: str | None = None
    metric: str = METRIC
    loss: float | None = None
    bits_per_byte: float | None = None
    train_loss: float | None = None
    steps: int = 0
    epochs: float | None = None
    parameters: int | None = None
    flops: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    max_vio: dict[str, list[float]] = field(default_factory=dict)
    stability: dict[str, Any] = field(default_factory=dict)
    resumed: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    version: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not isinstance(self.scale, dict):
            raise ValueError(f"scale must be a mapping, got {self.scale!r}")
        Scale(**self.scale)
        for name in ("config", "max_vio", "stability"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} must be a mapping, got {getattr(self, name)!r}")
        for name in ("lr", "base_lr"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if self.status not in ENDED:
            raise ValueError(f"status must be one of {', '.join(ENDED)}, got {self.status!r}")
        if self.cause is not None and (self.status != "failed" or self.cause not in CAUSES):
            raise ValueError(
                f"cause must be null or, of a failed run, one of {', '.join(CAUSES)}, got {self.cause!r}"
            )
        if (self.loss is not None) != (self.status == "finished"):
            raise ValueError(f"loss must be a number exactly when status is finished, got {self.loss}")


def save(record: Record, run_dir: Path) -> None:
    """Write `run_dir`/record.json."""
    write_json(run_dir / "record.json", asdict(record))


class OtherSchemaError(ValueError):
    """A record that another version of this package wrote."""


def load(run_dir: Path) -> Record | None:
    """The record of a run folder, or None if the run has not ended.

    Raises ValueError, naming the file, if it is not a record of this schema.
    """
    path = run_dir / "record.json"
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path}: not a record: {error}") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else value
        error = OtherSchemaError if isinstance(found, int) else ValueError
        raise error(f"{path}: schema must be {SCHEMA}, got {found!r}")
    known = {f.name for f in fields(Record)}
    try:
        return Record(**{key: item for key, item in value.items() if key in known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def load_or_set_aside(run_dir: Path) -> Record | None:
    """`load`, but a record that cannot be read is renamed to record.damaged, with a warning.

    That of another version can be read, by that version: it stays, and OtherSchemaError is raised.
    """
    try:
        return load(run_dir)
    except OtherSchemaError:
        raise
    except ValueError as error:
        log.warning("%s; set aside as record.damaged, running again", error)
        (run_dir / "record.json").replace(run_dir / "record.damaged")
        return None
