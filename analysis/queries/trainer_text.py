"""A recommendation in the form that a trainer takes."""

from typing import TYPE_CHECKING

from hyperp.analysis.errors import argument
from hyperp.analysis.handover.base import Handover, Sourced
from hyperp.analysis.handover.write import TRANSLATORS, trainer_text
from hyperp.analysis.queries.overrides import hydra_overrides

if TYPE_CHECKING:  # which imports this module for `Recommendation.for_trainer`
    from hyperp.analysis.law.schema import Law
    from hyperp.analysis.queries.recommend import Recommendation

TRAINERS = ("hyperp", *TRANSLATORS, "json")


def text_for_trainer(
    found: "Recommendation", trainer: str, sequence_length: int | None = None, law: "Law | None" = None
) -> str:
    """What `trainer` takes: overrides, arguments, TOML, YAML, or the whole answer as JSON.

    Args:
        found: the recommendation.
        trainer: one of TRAINERS.
        sequence_length: tokens in a sequence, for trainers whose batch counts sequences.
        law: the law of the recommendation; with it, a refusal about base_lr names the runs to do next.

    Raises:
        ValueError: an unknown trainer, a length that does not divide the batch, or for hyperp a law of other
            runs than those of hyperp-train.
        Refusal: for hyperp, as of `hydra_overrides`.
    """
    if trainer not in TRAINERS:
        option = argument("trainer", option="--for")
        raise ValueError(f"{option} must be one of {', '.join(TRAINERS)}, got {trainer!r}")
    if trainer == "json":
        return found.model_dump_json(indent=2)
    if trainer == "hyperp":
        return hydra_overrides(found, law)
    return trainer_text(trainer, as_handover(found, sequence_length))


def as_handover(found: "Recommendation", sequence_length: int | None = None) -> Handover:
    """The recommendation as `analysis.handover` takes it."""
    groups = found.groups.known
    by_option = {
        "weight_decay": {role: one.weight_decay_factor for role, one in groups.items()},
        "eps": {role: one.epsilon_factor for role, one in groups.items()},
    }
    interval = f"{100 * found.level:g}% interval {found.low:.4g} to {found.high:.4g}"
    return Handover(
        headline=found.headline(),
        context=found.context,
        sizes=found.target,
        rates={
            role: Sourced(one.lr, f"the law, {interval}" if one.source == "the law" else one.source)
            for role, one in groups.items()
        },
        unknown_rates=found.groups.unknown,
        tuned={
            name: Sourced(one.value, f"tuned with the rate, {one.low:.4g} to {one.high:.4g}")
            for name, one in found.also.items()
        },
        factors={name: of for name, of in by_option.items() if set(of.values()) != {1.0}},
        trainer=found.trainer,
        sequence_length=sequence_length,
        warnings=tuple(found.warnings),
    )
