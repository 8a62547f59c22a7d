"""The plan: the runs that a `sweep` section asks for, validated and with ids. Nothing here starts a run.

Hydra composes every block once; the block's points differ in plain keys, which are then set on that
composition as Hydra would set them. Each point also carries overrides that compose its run by themselves.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from hyperp.config import Config, compose
from hyperp.suggestions import Compose, closest_key, compose_with_hint, did_you_mean, parse_overrides
from hyperp.sweeps.plan.command_run import git_state
from hyperp.sweeps.plan.overrides import expand_choices, format_override
from hyperp.sweeps.plan.run_config import RATE_KEYS, RunConfig, RunFacts, facts_of, read_run, trainer_name
from hyperp.sweeps.plan.sweep import Block, Sweep
from hyperp.terminal import one_line
from hyperp.validation import invalid_field

VALUES = "values."  # in a sweep of a command, short for trainer.values.
VALUE_OVERRIDE = re.compile(r"[+~]*values\.")


@dataclass(frozen=True)
class Point:
    """One run of a plan; `overrides` compose its `config`.

    `blocks` are those that ask for it, and the first one counts it. `lr` is the peak rate of the hidden
    matrices after every factor, `flops` the estimated cost of training; of a command that tells none, it is
    1.
    """

    run_id: str
    blocks: tuple[str, ...]
    overrides: tuple[str, ...]
    config: RunConfig
    lr: float
    flops: float

    @property
    def own(self) -> Config:
        """The configuration of a run of hyperp's own trainer."""
        assert isinstance(self.config, Config)
        return self.config

    @cached_property
    def facts(self) -> RunFacts:
        """What is known of the run before it starts."""
        return facts_of(self.config)

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.config.runtime.root) / self.run_id


@dataclass(frozen=True)
class Plan:
    """The runs that `overrides` ask for, each once, in folders of `root`; `launcher` is that section."""

    overrides: tuple[str, ...]
    root: Path
    launcher: dict[str, Any]
    points: tuple[Point, ...]


def make_plan(overrides: str | Sequence[str], compose: Compose = compose) -> Plan:
    """The runs that Hydra overrides ask for, such as `["+experiment=demo", "seed=0,1"]`. Starts nothing.

    Expands the `sweep` section that the overrides compose. Comma choices in the overrides multiply the plan.

    Raises:
        ValueError: an override, a block or a run is wrong; one line that names the field and its value.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    found: dict[str, Point] = {}
    roots: set[str] = set()
    launcher: dict[str, Any] | None = None
    for variant in expand_choices(overrides):
        cfg, variant = _compose_for_trainer(variant, compose)
        launcher = launcher or _section_values(cfg, "launcher")
        for point in _expand_variant(cfg, variant, compose):
            roots.add(point.config.runtime.root)
            first = found.setdefault(point.run_id, point)
            found[point.run_id] = replace(first, blocks=tuple(dict.fromkeys(first.blocks + point.blocks)))
    if len(roots) > 1:
        raise ValueError(
            f"runtime.root must be the same for every run of a plan, got {', '.join(sorted(roots))}"
        )
    return Plan(tuple(overrides), Path(roots.pop()), launcher or {}, tuple(found.values()))


def _compose_for_trainer(overrides: list[str], compose: Compose) -> tuple[DictConfig, list[str]]:
    """The configuration, and the overrides with the keys of a command in full where one is the trainer."""
    values = [one for one in overrides if VALUE_OVERRIDE.match(one)]
    cfg = compose_with_hint([one for one in overrides if one not in values], compose)
    if trainer_name(cfg) != "command":
        return (compose_with_hint(overrides, compose) if values else cfg), overrides
    full = full_overrides(overrides)
    return compose_with_hint(full, compose), full


def _section_values(cfg: DictConfig, section: str) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(cfg[section], resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(one_line(error)) from None


def _expand_variant(cfg: DictConfig, overrides: list[str], compose: Compose) -> Iterator[Point]:
    try:
        sweep = Sweep.model_validate(_section_values(cfg, "sweep"))
    except ValidationError as error:
        raise ValueError(invalid_field(error, "sweep")) from None
    chosen = [
        one.value()
        for one in parse_overrides(overrides)
        if one.key_or_group == "sweep" and one.value() != "none"
    ]
    if not sweep.blocks and chosen:
        raise ValueError(f"sweep.blocks must have at least one block, sweep={chosen[-1]} has none")
    if not sweep.blocks:
        _note_commit(cfg)
        yield make_point((), overrides, read_run(cfg))
    given = {override.key_or_group for override in parse_overrides(overrides)}
    for name, block in sweep.blocks.items():
        block = block.with_keys(partial(full_key, trainer=trainer_name(cfg)))
        swept = block.keys() | {override.key_or_group for override in parse_overrides(block.overrides)}
        if block.lr and not _rate_is_reference(cfg, name):
            swept |= {RATE_KEYS[trainer_name(cfg)]}
        for key in sorted(swept & given):
            raise ValueError(f"{key} is set on the command line and in sweep.blocks.{name}; remove one")
        yield from _expand_block(name, block, overrides, compose)


def full_key(key: str, trainer: str) -> str:
    """The key of the configuration that a key of a block is, or is short for.

    Of a command, values.tokens is short for trainer.values.tokens. So are scale.tokens, base_lr, seed and the
    names of columns, as `hyperp-law next` writes them.
    """
    if key.startswith(VALUES):
        return f"trainer.{key}"
    if trainer != "command":
        return key
    name = "lr" if key == "base_lr" else key.removeprefix("scale.")
    return key if "." in name else f"trainer.values.{name}"


def full_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides of a command, with values.tokens, scale.tokens, base_lr and seed as keys of its values."""
    short = re.compile(r"^([+~]*)(?:values\.|scale\.|(?=(?:base_lr|seed)=))")
    full = [short.sub(r"\1trainer.values.", one) for one in overrides]
    return [re.sub(r"^([+~]*trainer\.values\.)base_lr=", r"\1lr=", one) for one in full]


def _note_commit(cfg: DictConfig) -> None:
    """Write into the section `trainer` which commit a command's code is at."""
    if trainer_name(cfg) == "command":
        commit, dirty = git_state(Path(str(cfg.trainer.cwd)).expanduser())
        OmegaConf.update(cfg, "trainer", {"commit": commit, "dirty": dirty}, merge=True, force_add=True)


def _rate_is_reference(cfg: DictConfig, name: str) -> bool:
    """Whether a block's rates surround one from elsewhere, as `rate: ${base_lr}` in sweep=check."""
    lr = cfg.sweep.blocks[name].lr
    return "rate" in lr and OmegaConf.is_interpolation(lr, "rate")


def _expand_block(name: str, block: Block, overrides: list[str], compose: Compose) -> Iterator[Point]:
    overrides = [*overrides, *block.overrides]
    try:
        base, overrides = _compose_for_trainer(overrides, compose)
        OmegaConf.set_struct(base, False)
        base.pop("sweep")  # it may be long, and a run does not read it
        OmegaConf.set_struct(base, True)
        _note_commit(base)
        setter, rate_key = _KeySetter(base), RATE_KEYS[trainer_name(base)]
        for values in block.slices():
            rates: list[dict[str, Any]] = [{}]
            if block.lr:
                lookup = {key: _positive_number(base, values, key) for key in block.lr.per_octave}
                rates = [{rate_key: rate} for rate in block.lr.values(lookup)]
            for rate in rates:
                keys = values | rate
                point_overrides = [*overrides, *(format_override(key, value) for key, value in keys.items())]
                yield make_point((name,), point_overrides, setter.configure(keys))
    except ValueError as error:
        raise ValueError(f"sweep.blocks.{name}: {error}") from None


def _positive_number(base: DictConfig, values: Mapping[str, Any], key: str) -> float:
    value = values[key] if key in values else OmegaConf.select(base, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"lr.per_octave.{key} must name a key whose value is a positive number, got {value!r}"
        )
    return float(value)


class _KeySetter:
    """Sets keys on copies of one composition; points with the same keys share a copy and overwrite it."""

    def __init__(self, base: DictConfig):
        self.base = base
        self.copies: dict[tuple[str, ...], DictConfig] = {}

    def configure(self, values: Mapping[str, Any]) -> RunConfig:
        """The validated configuration with `values` set as overrides would set them. Raises ValueError."""
        keys = tuple(values)
        merged = any(
            isinstance(value, dict) for value in values.values()
        )  # with what is there, so not overwritten
        if merged or keys not in self.copies:
            self.copies[keys] = copy.deepcopy(self.base)
        cfg = self.copies[keys]
        try:
            for key, value in values.items():
                if isinstance(value, str) and OmegaConf.is_dict(OmegaConf.select(cfg, key)):
                    raise ValueError(
                        f"{key} is a group of the configuration: set it in the block's overrides"
                    )
                OmegaConf.update(cfg, key, value, merge=True)
        except OmegaConfBaseException as error:
            close = next(filter(None, (closest_key(key, self.base) for key in values)), None)
            raise ValueError(f"{one_line(error)}{did_you_mean(close)}") from None
        return read_run(cfg)


def make_point(blocks: tuple[str, ...], overrides: Sequence[str], config: RunConfig) -> Point:
    """A point with its id, rate and cost. Raises ValueError for sizes that no model can have."""
    facts = facts_of(config)
    return Point(config.run_id(), blocks, tuple(overrides), config, facts.lr, facts.flops or 1.0)
