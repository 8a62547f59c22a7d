"""The configuration of a run, whoever trains it: hyperp's `Config`, or the `CommandRun` of another trainer.

Everything else in `hyperp.sweeps` uses what `facts_of` says of a run, and the plain values that go into
files.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hyperp.config import Config, config_from_dict, resolve
from hyperp.flops import Shape, training_flops
from hyperp.run_table import COVARIATES
from hyperp.rundir.record import METRIC
from hyperp.sweeps.plan.command_run import CommandRun, command_run_of
from hyperp.sweeps.plan.command_section import OTHER_COLUMNS, Values
from hyperp.terminal import one_line

RunConfig = Config | CommandRun
SWEPT = ("scale", "base_lr", "seed")  # what a law varies or averages over; `setting` is a hash of the rest
BYTE_IDS = 2**8  # vocabulary of every source but `tokens`, which are read byte by byte
RATE_KEYS = {"hyperp": "base_lr", "command": "trainer.values.lr"}  # by trainer, what a block's rates set


@dataclass(frozen=True)
class RunFacts:
    """What a table, a plan and the search for a rate know of a run.

    `context` has optimizer, parametrization, schedule, data and metric. `sizes` are the known ones of
    COVARIATES, `others` further columns. `lr` is the peak rate after every factor, `base_lr` before them.
    `steps`, `flops` and `tokens` are None where unknown.
    """

    context: dict[str, str]
    sizes: dict[str, int]
    seed: int
    lr: float
    base_lr: float
    steps: int | None
    tokens: int | None
    flops: float | None
    others: Values = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """These facts as columns of the table."""
        return {
            **self.context,
            **self.sizes,
            **self.others,
            "seed": self.seed,
            "lr": self.lr,
            "base_lr": self.base_lr,
        }


def trainer_name(cfg: DictConfig | Mapping[str, Any]) -> str:
    """The name of the trainer that a composed configuration, or the plain values of a run, ask for."""
    name = (cfg.get("trainer") or {}).get("name", "hyperp")
    if name not in RATE_KEYS:
        raise ValueError(f"trainer.name must be {' or '.join(RATE_KEYS)}, got {name!r}")
    return name


def read_run(cfg: DictConfig) -> RunConfig:
    """The run of a composed configuration. Raises ValueError in one line, naming the field."""
    if trainer_name(cfg) == "hyperp":
        return resolve(cfg)
    try:
        values = {
            key: OmegaConf.to_container(cfg[key], resolve=True, throw_on_missing=True)
            for key in ("trainer", "runtime")
        }
    except OmegaConfBaseException as error:
        raise ValueError(one_line(error)) from None
    run = command_run_of(values)
    run.check_names()
    return run


def run_of(values: Mapping[str, Any]) -> RunConfig:
    """The run of plain values, as `values_of` returned them. Raises ValueError, naming the field."""
    return command_run_of(values) if trainer_name(values) == "command" else config_from_dict(dict(values))


def values_of(config: RunConfig) -> dict[str, Any]:
    """A run as plain values, for files and other processes."""
    return config.as_values() if isinstance(config, CommandRun) else asdict(config)


def facts_of(config: RunConfig) -> RunFacts:
    """What is known of a run before it starts. Raises ValueError for sizes that no model can have."""
    return _command_facts(config) if isinstance(config, CommandRun) else _hyperp_facts(config)


def _hyperp_facts(config: Config) -> RunFacts:
    scale = config.scale
    return RunFacts(
        context={
            "optimizer": config.optim.name,
            "parametrization": config.parametrization.name,
            "schedule": config.schedule.shape,
            "data": config.data.source,
            "metric": METRIC,
        },
        sizes=asdict(scale),
        seed=config.seed,
        lr=config.parametrization.effective_lr("hidden", scale, config.base_lr).lr,
        base_lr=config.base_lr,
        steps=scale.steps,
        tokens=scale.tokens_trained,
        flops=float(training_flops(scale, model_shape(config))),
    )


def _command_facts(run: CommandRun) -> RunFacts:
    values = run.values
    sizes = {name: int(values[name]) for name in COVARIATES if name in values}
    lr, flops, steps = float(values["lr"]), values.get("flops"), values.get("steps")
    return RunFacts(
        context=run.trainer.context.model_dump(),
        sizes=sizes,
        seed=int(values.get("seed", 0)),
        lr=lr,
        base_lr=lr,
        steps=int(steps) if isinstance(steps, int | float) else None,
        tokens=sizes.get("tokens"),
        flops=float(flops) if isinstance(flops, int | float) else None,
        others={
            name: value
            for name, value in run.trainer.values.items()
            if name not in COVARIATES and name not in OTHER_COLUMNS
        },
    )


def model_shape(config: Config) -> Shape:
    """The shape of a run's model; data=tokens has its vocabulary size in a file beside the tokens."""
    if config.data.source != "tokens":
        return config.shape(BYTE_IDS)
    from hyperp.data.corpus import read_sidecar

    return config.shape(read_sidecar(Path(str(config.data.path))).vocab_size)


def setting_hash(values: Mapping[str, Any]) -> str:
    """8 hexadecimal digits, equal for runs that differ in sizes, rate, seed and a command's values alone.

    `values` are those of a run, as in its record. Keys that an older version did not write count with their
    defaults, if its configuration can be read.
    """
    try:
        config = run_of(values)
        identity = config.identity()
    except (ValueError, TypeError, KeyError):  # of a version with other keys
        identity = {key: value for key, value in values.items() if key != "runtime"}
    if trainer_name(values) == "command":
        kept = {key: value for key, value in identity.items() if key not in ("values", "derive")}
    else:
        kept = {key: value for key, value in identity.items() if key not in SWEPT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
