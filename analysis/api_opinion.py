"""The Python API for published laws: a second opinion, and the doctor of a run's configuration."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from hyperp.analysis.errors import Refusal
from hyperp.analysis.law import schema
from hyperp.analysis.registry.configurations import read_configuration
from hyperp.analysis.registry.doctor import Diagnosis
from hyperp.analysis.registry.opinion import Opinion, OwnRate, Plan, form_opinion, require_valid_rates
from hyperp.analysis.registry.rules import examine
from hyperp.analysis.registry.target import (
    WORDS,
    Reference,
    Target,
    read_reference,
    read_target,
    require_known,
)
from hyperp.analysis.results import Law


def opinion(
    optimizer: str,
    *,
    schedule: str | None = None,
    parametrization: str | None = None,
    laws: Sequence[Law | Path | str] = (),
    lr: float | None = None,
    weight_decay: float | None = None,
    reference: Mapping[str, float] | None = None,
    **sizes: float,
) -> Opinion:
    """What published laws of the learning rate say of a run: rates, how far each is from home, the spread.

    Args:
        optimizer: of the hidden matrices, such as "muonh".
        schedule: of the run, such as "linear"; not compared unless given.
        parametrization: of the model, such as "mup"; not compared unless given.
        laws: your own laws; where their interval lies among the published ones.
        lr: the peak rate that you plan for the hidden matrices.
        weight_decay: that you plan for them.
        reference: a run with a known best rate, such as {"width": 1024, "lr": 0.01}, for the rules that
            scale one; the middle of your own law unless given, if there is just one. Sizes that all slices
            of that law share may be left out.
        sizes: tokens, batch_tokens, width, depth, params (without embeddings) and sequence_length.

    Raises:
        ValueError: an unknown optimizer, schedule, parametrization or size, or a number that is not positive.
    """

    plan = Plan(
        optimizer=optimizer,
        schedule=schedule,
        parametrization=parametrization,
        lr=lr,
        weight_decay=weight_decay,
    )
    plan.require_valid()
    named = {
        f"law {number}" if isinstance(law, Law) else str(law): _loaded(law)
        for number, law in enumerate(laws, start=1)
    }
    whose = {name: law.context.get("optimizer") or optimizer for name, law in named.items()}
    fitted = {name: law for name, law in named.items() if whose[name] == optimizer}
    declined = [f"{name} is of {whose[name]}" for name in named if name not in fitted]
    only = next(iter(fitted.values())) if len(fitted) == 1 else None
    known = read_target(sizes).model_dump(exclude_none=True)
    filled = {} if only is None else _held_sizes(only, known)
    target = read_target(known | filled)
    start = None if reference is None else read_reference(reference)
    reference_law = None
    if start is None and only is not None:
        middle = read_target(_held_sizes(only) | only.middle, strict=False)
        start = Reference(lr=only.interval_at(only.middle)[0], target=middle)
        reference_law = next(iter(fitted))
    own, refused = _own_rates(fitted, optimizer, target)
    assumed = [f"{name} = {size:g}, as in every slice of your law" for name, size in filled.items()]
    return form_opinion(target, plan, start, own, [*declined, *refused], assumed, reference_law)


def _loaded(law: Law | Path | str) -> Law:
    return law if isinstance(law, Law) else schema.load_law(law, Law)


def _held_sizes(law: Law, known: Container[str] = ()) -> dict[str, float]:
    """The sizes of a target that all slices of a law share, without those that are known."""
    held = {name: float(size) for name, size in law.held.items() if size > 0 and name not in known}
    return {name: size for name, size in held.items() if name in Target.model_fields}


def _own_rates(laws: Mapping[str, Law], optimizer: str, target: Target) -> tuple[list[OwnRate], list[str]]:
    """What the user's own laws say of a target, however far it lies, and why some say nothing."""
    known = target.model_dump(exclude_none=True)
    own, declined = [], []
    for name, law in laws.items():
        sizes = {size: value for size, value in known.items() if size in (*law.ranges, *law.held)}
        missing = [size for size in law.ranges if size not in sizes]
        if missing:
            declined.append(f"{name} needs {', '.join(missing)}")
            continue
        try:
            found = law.recommend(extrapolate=True, **sizes)
        except Refusal as refusal:
            declined.append(f"{name} is refused here: {refusal.reason}")
            continue
        own.append(OwnRate(name=name, optimizer=optimizer, lr=found.lr, low=found.low, high=found.high))
    return own, declined


def doctor(
    config: Path | str,
    *,
    trainer: str | None = None,
    keys: Path | str | None = None,
    optimizer: str | None = None,
    schedule: str | None = None,
    parametrization: str | None = None,
    laws: Sequence[Law | Path | str] = (),
    lr: float | None = None,
    weight_decay: float | None = None,
    reference: Mapping[str, float] | None = None,
    **sizes: float,
) -> Diagnosis:
    """What a trainer's configuration means, which known rules it breaks, and the opinion on it.

    Args:
        config: a nanochat or Megatron command line, a torchtitan TOML file, TrainingArguments as JSON or
            YAML, or a configuration of your own.
        trainer: nanochat, torchtitan, megatron, hf or own; found out unless given.
        keys: a YAML file that says which keys of your own configuration mean what.
        optimizer, schedule, parametrization, lr, weight_decay, sizes: as for `opinion`; what is given goes
            before what the configuration says.
        laws, reference: as for `opinion`.

    Raises:
        ValueError: a file that cannot be read, keys of no known trainer, or what `opinion` raises.
    """
    found = read_configuration(config, trainer, keys, read_target(sizes))
    said = {"optimizer": optimizer, "schedule": schedule, "parametrization": parametrization}
    said = {name: value for name, value in said.items() if value is not None}
    for name, value in said.items():
        require_known(name, value, WORDS[name])
    rates = found.rates if lr is None else found.rates | {"hidden": lr}
    decays = found.weight_decay if weight_decay is None else found.weight_decay | {"hidden": weight_decay}
    require_valid_rates(rates.get("hidden"), decays.get("hidden"))
    run = found.model_copy(update={**said, "rates": rates, "weight_decay": decays})
    known = run.target.model_dump(exclude_none=True)
    asked = None
    if run.optimizer is not None and known:
        asked = opinion(
            run.optimizer,
            schedule=run.schedule,
            parametrization=run.parametrization,
            laws=laws,
            lr=run.rates.get("hidden"),
            weight_decay=run.weight_decay.get("hidden"),
            reference=reference,
            **known,
        )
    return Diagnosis(path=str(config), config=run, findings=examine(run), opinion=asked)
