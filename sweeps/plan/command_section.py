"""The `trainer` section for a command: how to start a lab's own trainer, and where its result is.

conf/trainer/command.yaml says what every field is. Nothing here starts a process.
"""

import math
import re
import signal
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from hyperp.run_table import CONTEXT, COVARIATES, RESULTS
from hyperp.sweeps.plan.placeholders import Value
from hyperp.validation import Finite, Strict, positive_int

Pick = Literal["last", "first", "min", "max"]
Argument = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else str(value))]
GivenValue = StrictBool | StrictInt | Finite | StrictStr
# Values that a run has beside those of its experiment; `hyperp.sweeps.trainers` fills them in.
PLACES = (
    *("run_dir", "run_id", "python", "gpus", "threads", "nodes", "node_rank", "processes", "rank"),
    *("master_addr", "master_port"),
)
# Values that only `resume.arguments` may use: the newest match of `resume.when`, and the folder it is in.
RESUME_PLACES = ("checkpoint", "checkpoint_folder")
OTHER_COLUMNS = ("lr", "seed", "flops", "steps", "parameters")  # columns of every table, beside the sizes
STANDARD_RESULTS = ("train_loss", "bits_per_byte", "tokens_per_second")  # beside the loss
TAKEN = ("run_id", "status", "reason", "cause", "block", "base_lr", "version", "trainer", *CONTEXT, *RESULTS)
DIVERGED = re.compile(r"loss is not finite(?:, or above (?P<above>\d+\.?\d*(?:e[+-]?\d+)?))?")


def _compiled(*groups: str) -> Callable[[str], str]:
    def check(pattern: str) -> str:
        try:
            found = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"must be a regular expression, got {pattern!r} ({error})") from None
        for name in groups:
            if name not in found:
                raise ValueError(f"must have a group (?P<{name}>...), got {pattern!r}")
        return pattern

    return check


def _check_signal(name: str) -> str:
    if not hasattr(signal, name) or not isinstance(getattr(signal, name), signal.Signals):
        raise ValueError(f"must be the name of a signal, such as SIGTERM or SIGUSR1, got {name!r}")
    return name


def _check_diverged(text: str) -> str:
    if not DIVERGED.fullmatch(text):
        raise ValueError(
            f"must be 'loss is not finite' or 'loss is not finite, or above NUMBER', got {text!r}"
        )
    return text


class ResultSource(Strict):
    """Where a number is when the command has ended: exactly one of `file`, `output`, `tensorboard`, `wandb`.

    `file` is JSON lines, JSON or CSV by its suffix, with `key` a column or a path such as eval.loss. `output`
    is a regular expression with a group `value` on what the command prints. `tensorboard` is a folder of
    event files with a `tag`, `wandb` the folder of an offline run with a `key`. `pick` chooses among several
    values.
    """

    file: str | None = None
    output: Annotated[str, AfterValidator(_compiled("value"))] | None = None
    tensorboard: str | None = None
    wandb: str | None = None
    key: str | None = None
    tag: str | None = None
    pick: Pick = "last"

    @model_validator(mode="after")
    def _one_place(self) -> "ResultSource":
        places = {name: getattr(self, name) for name in ("file", "output", "tensorboard", "wandb")}
        given = [name for name, value in places.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"must have one of {', '.join(places)}, got {', '.join(given) or 'none of them'}"
            )
        needs = {"file": "key", "wandb": "key", "tensorboard": "tag", "output": None}[given[0]]
        for name in ("key", "tag"):
            if (getattr(self, name) is not None) != (name == needs):
                missing = name == needs
                raise ValueError(f"{name} must {'be given' if missing else 'be left out'} with {given[0]}")
        if self.file is not None and not self.file.endswith((".jsonl", ".json", ".csv", ".tsv")):
            raise ValueError(f"file must end in .jsonl, .json, .csv or .tsv, got {self.file!r}")
        return self

    @property
    def place(self) -> str:
        """The text with names in braces that says where; empty for the output."""
        return self.file or self.tensorboard or self.wandb or ""


class Context(Strict):
    """What the runs of an experiment have in common, as columns of the table."""

    optimizer: str
    schedule: str
    data: str
    metric: str
    parametrization: str = "none"


class Progress(Strict):
    """How to read the step from a line of output: a regular expression with a group `step`.

    Groups `steps` (of the whole run) and `tokens_per_second` are read if they are there.
    """

    pattern: Annotated[str, AfterValidator(_compiled("step"))]


class Resume(Strict):
    """Arguments that are added once a file or folder matches the glob `when`.

    In them {checkpoint} is the newest match, and {checkpoint_folder} the folder that it is in.
    """

    when: str
    arguments: list[Argument]


class Stop(Strict):
    """The signal that a command gets before a time limit or a preemption, and the seconds it then has."""

    signal: Annotated[str, AfterValidator(_check_signal)] = "SIGTERM"
    grace: float = Field(default=60.0, gt=0)


class Diverged(Strict):
    """When a result counts as diverged, beside a loss that is not finite."""

    when: Annotated[str, AfterValidator(_check_diverged)] = "loss is not finite"

    @property
    def limit(self) -> float:
        """The largest loss of a run that has not diverged."""
        match = DIVERGED.fullmatch(self.when)
        return float(match["above"]) if match and match["above"] else math.inf


class CommandSection(Strict):
    """The section `trainer` of an experiment whose runs are commands.

    `commit` is the git commit of `cwd`, or None without one; the plan sets it, and `dirty` with it.
    """

    name: Literal["command"]
    command: list[Argument] = Field(min_length=1)
    cwd: str = "."
    env: dict[str, Argument] = Field(default_factory=dict)
    context: Context
    values: dict[str, GivenValue]
    derive: dict[str, str] = Field(default_factory=dict)
    result: dict[str, ResultSource]
    progress: Progress | None = None
    resume: Resume | None = None
    stop: Stop = Field(default_factory=Stop)
    diverged: Diverged = Field(default_factory=Diverged)
    retries: int = Field(default=0, ge=0)
    commit: str | None = None
    dirty: bool = False

    @model_validator(mode="before")
    @classmethod
    def _whole_sizes(cls, section: Any) -> Any:
        """Whole floats such as 1e8 become integers in the columns that are whole numbers."""
        values = section.get("values") if isinstance(section, dict) else None
        if not isinstance(values, dict):
            return section
        whole = {
            name: positive_int(f"values.{name}", value)
            for name, value in values.items()
            if name in COVARIATES
        }
        return section | {"values": values | whole}

    @model_validator(mode="after")
    def _consistent(self) -> "CommandSection":
        lr, seed = self.values.get("lr"), self.values.get("seed", 0)
        if isinstance(lr, bool) or not isinstance(lr, int | float) or lr <= 0:
            raise ValueError(
                f"values.lr must be a positive number, the rate that the law is about, got {lr!r}"
            )
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"values.seed must be a whole number of at least 0, got {seed!r}")
        if "loss" not in self.result:
            raise ValueError(f"result must have loss, got {', '.join(self.result) or 'nothing'}")
        for section in ("values", "derive", "result"):
            for name in getattr(self, section):
                if not name.isidentifier() or name in (*PLACES, *RESUME_PLACES):
                    others = ", ".join((*PLACES, *RESUME_PLACES))
                    raise ValueError(f"{section}.{name} must be a plain name other than {others}")
        own = set(TAKEN) | set(COVARIATES) | set(OTHER_COLUMNS) | self.values.keys() | self.derive.keys()
        for name in (self.values.keys() | self.derive.keys()) & set(TAKEN):
            raise ValueError(f"values.{name} must not be a column that every table has, such as {name}")
        for name in self.result.keys() & (own - {"loss", *STANDARD_RESULTS}):
            raise ValueError(f"result.{name} must not be a column that the table has already, such as {name}")
        for name in self.values.keys() & self.derive.keys():
            raise ValueError(f"derive.{name} is in values too; a name may be in one of them")
        return self

    def texts(self) -> dict[str, str]:
        """Every text that may have names in braces, by its field."""
        found = {f"command[{i}]": text for i, text in enumerate(self.command)}
        found |= {f"env.{name}": text for name, text in self.env.items()}
        found |= {f"result.{name}": source.place for name, source in self.result.items() if source.place}
        if self.resume:
            found["resume.when"] = self.resume.when
            found |= {f"resume.arguments[{i}]": text for i, text in enumerate(self.resume.arguments)}
        return {f"trainer.{field}": text for field, text in found.items()}


Values = dict[str, Value]
