"""The configuration of one run: composed by Hydra, validated as a whole, hashed to the run's id.

`Config` is what the library reads. `compose` lets Hydra merge the files of `conf/` with overrides, typed by
a mirror of `Config`, so that an unknown key or a wrong type is an error; `resolve` makes a `Config` of it.
"""

import hashlib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import StrictBool

from hyperp.flops import Shape, experts_of
from hyperp.parametrization import LATER_FIELDS, Parametrization
from hyperp.scale import Scale
from hyperp.schedule import Schedule
from hyperp.terminal import one_line
from hyperp.validation import Count, NonNegative, Positive, Whole, is_finite, is_integer, must, validated

# Fields that the first runs did not have; see `Config.identity`.
LATER_MODEL_FIELDS = ("shared_expert", "sqrt_gate", "balance_weight", "attention_ratio")


@validated
class ModelConfig:
    """The sizes and options of the decoder, apart from its width and depth.

    `query_heads` None means attention_ratio x width / head_size. `shared_expert` and `sqrt_gate` are options
    of a mixture of experts, see `hyperp.model.moe`. `balance_weight` is the weight of the balance loss in the
    training objective; losses that are reported never contain it.
    """

    context: Whole = 128
    head_size: Whole = 16
    query_heads: Whole | None = None
    kv_heads: Whole = 1
    mlp_ratio: Whole = 4
    qk_norm: StrictBool = True
    gated_attention: StrictBool = False
    rope_base: Positive = 10_000.0
    shared_expert: StrictBool = False
    sqrt_gate: StrictBool = True
    balance_weight: NonNegative = 0.0
    attention_ratio: Whole = 1

    def __post_init__(self) -> None:
        if self.head_size % 2:
            raise ValueError(f"head_size must be even (rotary embedding), got {self.head_size}")
        if self.query_heads is not None and self.query_heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide query_heads={self.query_heads}, got {self.kv_heads}")


@validated
class OptimConfig:
    """The optimizer of a run.

    `algorithms` maps a role to its algorithm, `options` an algorithm to its options. `clip` is the largest
    norm of the gradient over all parameters, above which it is scaled down; 0 turns that off.
    """

    name: str = "muonh"
    algorithms: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    clip: NonNegative = 1.0

    def __post_init__(self) -> None:
        hidden = self.algorithms.get("hidden", self.name)
        if hidden != self.name:
            raise ValueError(
                f"name must be optim.algorithms.hidden, {hidden}, got {self.name}; "
                "optim=NAME chooses another optimizer"
            )
        for algorithm, values in self.options.items():
            for key, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, float) and not is_finite(value):
                    raise ValueError(f"options.{algorithm}.{key} must be finite, got {value}")


@validated
class DataConfig:
    """The text of a run. `source` is stdlib, text (bytes of `files`) or tokens (the prepared file `path`)."""

    source: Literal["stdlib", "text", "tokens"] = "stdlib"
    files: list[str] = field(default_factory=list)
    path: str | None = None
    held_out_tokens: Whole = 65_536

    def __post_init__(self) -> None:
        if self.source == "text" and not self.files:
            raise ValueError("files must name at least one file, folder or pattern when data.source is text")
        if self.source == "tokens" and not self.path:
            raise ValueError("path must name a prepared .bin file when data.source is tokens")
        if self.files and self.source != "text":
            raise ValueError(f"files is read with data=text alone, got {self.files} with {self.source}")
        if self.path and self.source != "tokens":
            raise ValueError(f"path is read with data=tokens alone, got {self.path} with {self.source}")


@validated
class RuntimeConfig:
    """Where and how a run is trained. None of it changes the result, so none of it is part of the run's id.

    `root` is the folder in which the run makes its own. `threads` 0 keeps torch's choice.
    `micro_batch_tokens` 0 takes the whole batch, or each process's share of it, at once. `log_every`,
    `eval_every`, `checkpoint_every` and `monitor_every` (see `hyperp.monitoring`) count steps; 0 means
    only at the end for evaluation, and never for checkpoints and monitors. `monitor_looks` above 0
    replaces `monitor_every`: so many measurements, evenly over the run, so that runs of different lengths
    have equally many. `wandb` is a W&B project, empty for none. `coordinates` are the steps after which
    activations are measured, see `hyperp.training.coordinates`.

    When several processes train one run (torchrun, or launcher.gpus), `parallel` says how they hold the
    model: a copy on each (ddp) or sharded (fsdp). `timeout` is how many seconds they wait for one another.
    """

    root: Annotated[str, must("the name of a folder", bool)] = "runs/single"
    device: str = "auto"
    threads: Count = 0
    compile: StrictBool = False
    micro_batch_tokens: Count = 0
    log_every: Whole = 10
    eval_every: Count = 0
    checkpoint_every: Count = 500
    monitor_every: Count = 50
    monitor_looks: Count = 0
    wandb: str = ""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout: Positive = 600.0
    coordinates: Annotated[
        list[int],
        must("steps of at least 1", lambda steps: all(is_integer(step) and step >= 1 for step in steps)),
    ] = field(default_factory=list)


@validated
class Config:
    """One run, with every value set. Raises ValueError, naming the field, if values do not fit together."""

    scale: Scale
    base_lr: Positive
    seed: Annotated[int, must("in 0 ... 2^32 - 1", lambda seed: is_integer(seed) and 0 <= seed < 2**32)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parametrization: Parametrization = field(default_factory=Parametrization)
    schedule: Schedule = field(default_factory=Schedule)
    data: DataConfig = field(default_factory=DataConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name, tokens in (
            ("scale.batch_tokens", self.scale.batch_tokens),
            ("runtime.micro_batch_tokens", self.runtime.micro_batch_tokens),
        ):
            if tokens % self.model.context:
                raise ValueError(
                    f"{name} must be a multiple of model.context={self.model.context}, got {tokens}"
                )
        if self.runtime.micro_batch_tokens and self.scale.batch_tokens % self.runtime.micro_batch_tokens:
            raise ValueError(
                f"runtime.micro_batch_tokens must divide scale.batch_tokens={self.scale.batch_tokens}, "
                f"got {self.runtime.micro_batch_tokens}"
            )
        if max(self.runtime.coordinates, default=0) > self.scale.steps:
            raise ValueError(
                f"runtime.coordinates must be steps of the run, at most {self.scale.steps}, "
                f"got {self.runtime.coordinates}"
            )
        self.schedule.check_length(self.scale.steps)
        self._check_experts()

    def tokens_per_rank(self, ranks: int) -> int:
        """Tokens of one optimizer step on each of `ranks` processes.

        Raises ValueError if the batch cannot be shared equally, or a share is not whole micro-batches.
        """
        batch, context, micro = self.scale.batch_tokens, self.model.context, self.runtime.micro_batch_tokens
        if batch % (ranks * context):
            raise ValueError(
                f"scale.batch_tokens must be a multiple of model.context={context} times the {ranks} "
                f"processes of the run, got {batch}"
            )
        if micro and batch // ranks % micro:
            raise ValueError(
                f"runtime.micro_batch_tokens must divide the {batch // ranks} tokens of each of the {ranks} "
                f"processes of the run, got {micro}"
            )
        return batch // ranks

    def _check_experts(self) -> None:
        try:
            experts = experts_of(self.scale, self.model.mlp_ratio, self.model.shared_expert)
        except ValueError as error:
            raise ValueError(f"scale.{error}") from None
        weight, k = self.model.balance_weight, self.scale.granularity
        if experts is None and weight:
            raise ValueError(
                "model.balance_weight must be 0 for a dense model (scale.granularity and scale.sparsity 1), "
                f"got {weight}"
            )
        if experts is not None and experts.active == 1 < experts.routed and not weight:
            raise ValueError(
                f"scale.granularity must be at least {k + 1} unless model.balance_weight is positive (one "
                f"expert chosen has a gate of 1, from which the router learns nothing), got {k}"
            )

    def shape(self, vocab: int) -> Shape:
        """The sizes of the decoder for a vocabulary of `vocab` ids. Raises ValueError if heads do not fit."""
        m = self.model
        heads = m.query_heads
        if heads is None:
            if m.attention_ratio * self.scale.width % m.head_size:
                raise ValueError(
                    f"scale.width must be a multiple of model.head_size={m.head_size}, got {self.scale.width}"
                )
            heads = m.attention_ratio * self.scale.width // m.head_size
            if heads % m.kv_heads:
                raise ValueError(
                    f"model.kv_heads must divide the {heads} query heads (model.attention_ratio x "
                    f"scale.width / model.head_size), got {m.kv_heads}"
                )
        return Shape(
            vocab=vocab,
            context=m.context,
            head_size=m.head_size,
            query_heads=heads,
            kv_heads=m.kv_heads,
            mlp_ratio=m.mlp_ratio,
            qk_norm=m.qk_norm,
            gated_attention=m.gated_attention,
            shared_expert=m.shared_expert,
            sqrt_gate=m.sqrt_gate,
        )

    def identity(self) -> dict[str, Any]:
        """Everything that determines the result of the run, as plain values: all but `runtime`.

        Fields that the first runs did not have are left out at their defaults, so that older runs keep their
        ids: `LATER_MODEL_FIELDS`, and `LATER_FIELDS` of the parametrization.
        """
        identity = {key: value for key, value in asdict(self).items() if key != "runtime"}
        model = {name: getattr(ModelConfig, name) for name in LATER_MODEL_FIELDS}
        for part, later in (("model", model), ("parametrization", LATER_FIELDS)):
            identity[part] = {
                key: value
                for key, value in identity[part].items()
                if not (key in later and value == later[key])
            }
        return identity

    def run_id(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of `identity()` as canonical JSON."""
        text = json.dumps(self.identity(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


PLAN_SECTIONS = ("sweep", "launcher", "trainer")  # `hyperp.sweeps` reads and validates them

# Whole numbers of these classes may be written as floats, such as 1e6, which OmegaConf's int would refuse.
WHOLE_FLOATS = (Scale, Parametrization)


def _hydra_type(hint: Any) -> Any:
    """The closest type that OmegaConf 2.3 has: a dataclass becomes its mirror, a Literal its base type."""
    if is_dataclass(hint):
        return _mirror(typing.cast(type, hint))
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    if get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_hydra_type(part) for part in get_args(hint))]  # noqa: UP007
    return hint


@cache
def _mirror(cls: type) -> type:
    """A mutable copy of a frozen dataclass, which OmegaConf would make read-only."""
    hints = get_type_hints(cls)
    columns = []
    for f in fields(cls):
        kind = _hydra_type(hints[f.name])
        if cls in WHOLE_FLOATS and int in (kind, *get_args(kind)):
            kind = kind | float
        if is_dataclass(kind):
            columns.append((f.name, kind, field(default_factory=typing.cast(type, kind))))
        elif f.default_factory is not MISSING:
            columns.append((f.name, kind, field(default_factory=f.default_factory)))
        else:
            columns.append((f.name, kind, field(default="???" if f.default is MISSING else f.default)))
    return make_dataclass(cls.__name__, columns)


@cache
def register_schema() -> None:
    """Register the typed schema with Hydra as `schema`; `hyperp.sweeps` validates PLAN_SECTIONS."""
    plans = [(name, dict[str, Any], field(default_factory=dict)) for name in PLAN_SECTIONS]
    ConfigStore.instance().store("schema", make_dataclass("Schema", plans, bases=(_mirror(Config),)))


def resolve(cfg: DictConfig) -> Config:
    """The `Config` of a composed configuration. Raises ValueError in one line, naming the field."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(one_line(error)) from None
    assert isinstance(values, dict)
    return config_from_dict({str(key): value for key, value in values.items() if key not in PLAN_SECTIONS})


def config_from_dict(values: dict[str, Any]) -> Config:
    """The `Config` of plain values, as from `dataclasses.asdict`. Raises ValueError, naming the field."""
    return Config(**values)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose `conf/train.yaml` with overrides. Raises ValueError in one line for a wrong override."""
    register_schema()
    try:
        with initialize_config_module("hyperp.conf", version_base="1.3"):
            return hydra_compose("train", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(one_line(error)) from None
