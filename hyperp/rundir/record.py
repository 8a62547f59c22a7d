"""What one run leaves behind: `record.json`, written once, atomically, when the run has ended."""

import json
import logging
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from hyperp.files import write_json
from hyperp.run_table import ENDED
from hyperp.scale import Scale
from hyperp.validation import invalid_field

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
    "rank_lost",  # another process of the run was lost, and nobody saw why
    "no_result",  # a command ended well but left no result
)


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
class Record:
    """One ended run. `loss` is nats per token on the held-out set, and is a number only if it finished.

    `lr` is the peak rate of the hidden matrices after every factor, `base_lr` the rate before them, `factors`
    the factors of every role, and `algorithms` every role's algorithm with all its options, also defaults.
    `config` is the whole resolved configuration, and `run_id` its hash. `bits_per_byte` uses the bytes per
    token of the whole corpus. `epochs` is the tokens trained on over the training tokens of the corpus.
    `max_vio` has the mean and the largest MaxVio over the run's steps, one number for each layer; it is empty
    for a dense model. `stability` is `StabilityMonitors.summary()`, empty if the run was not monitored.
    `cause` is one of CAUSES for a failed run, and null in records that are older than this field.

    `trainer` is "hyperp", or "command" for a run of somebody else's trainer: `scale` then has the sizes that
    are known, `metric` what the loss is, and `others` further columns, its values and what it measured.

    Raises pydantic's ValidationError, a ValueError, if a field has the wrong type or contradicts another.
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
    trainer: str = "hyperp"
    others: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.trainer == "hyperp":
            Scale(**self.scale)  # raises ValueError for sizes that are missing, unknown or wrong
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
    """The record was written by another version of this package."""


def load(run_dir: Path) -> Record | None:
    """The record of a run folder, or None if the run has not ended.

    Raises ValueError, naming the file, if it is not a record of this schema, OSError if it cannot be read.
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
    except ValidationError as error:
        raise ValueError(f"{path}: {invalid_field(error)}") from None


def load_or_set_aside(run_dir: Path) -> Record | None:
    """`load`, but rename a record that cannot be read to record.damaged, with a warning, and return None.

    A record of another version is left where it is, since that version can read it, and OtherSchemaError
    is raised.
    """
    try:
        return load(run_dir)
    except OtherSchemaError:
        raise
    except ValueError as error:
        log.warning("%s; set aside as record.damaged, running again", error)
        (run_dir / "record.json").replace(run_dir / "record.damaged")
        return None
