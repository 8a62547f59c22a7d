"""The rate of every parameter group at a target, as far as the law's parametrization says it."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from hyperp.analysis.handover.base import roles_of_target
from hyperp.analysis.law.schema import Law
from hyperp.analysis.vocabulary import trains_with_hyperp, unknown_options
from hyperp.parametrization import TABLES, Parametrization, RuleName
from hyperp.scale import Scale
from hyperp.validation import Strict

if TYPE_CHECKING:  # imports torch
    from hyperp.roles import Role

SAME = 1e-6  # relative difference up to which two factors are the same number


class GroupRate(Strict):
    """The peak learning rate of one parameter group, and where it comes from.

    `weight_decay_factor` and `epsilon_factor` are what the parametrization multiplies these two by.
    """

    lr: float
    source: str
    weight_decay_factor: float = 1.0
    epsilon_factor: float = 1.0


class GroupRates(Strict):
    """The rates of the groups that are known, `hidden` always, and why the others are not."""

    known: dict[str, GroupRate]
    unknown: str | None = None


def group_rates(law: Law, target: Mapping[str, int | float], lr: float) -> GroupRates:
    """The rates of all groups for the rate `lr` of the hidden matrices at a target.

    A rule of hyperp-train says the ratio of a group's rate to that of the hidden matrices. Where this depends
    on the rule's reference sizes, it is known only if the rule's defaults give lr/base_lr of every slice.
    """
    hidden = GroupRate(lr=lr, source="the law")
    others = [role for role in roles_of_target(target) if role != "hidden"]

    def only_hidden(why: str) -> GroupRates:
        return GroupRates(known={"hidden": hidden}, unknown=f"rates of {', '.join(others)}: {why}")

    if not trains_with_hyperp(law.context):
        return only_hidden("the law is of the column lr alone, and does not say which groups had it")
    if unknown := unknown_options(law.context):
        return only_hidden(f"the law was fitted for {', '.join(unknown)}, which hyperp-train does not have")
    name = law.context["parametrization"]
    rule = Parametrization(cast(RuleName, name))
    if not TABLES[rule.name]["width_exponent"]:
        source = f"that of the hidden matrices, as parametrization={name} gives all groups the same factors"
        return GroupRates(known={"hidden": hidden} | {r: GroupRate(lr=lr, source=source) for r in others})
    scale = _scale(target)
    if scale is None:
        return only_hidden(
            f"parametrization={name} needs width, depth, tokens and batch_tokens of the target"
        )
    if not _rule_holds(law, rule):
        return only_hidden(
            f"lr/base_lr of the slices is not that of parametrization={name} with its default reference "
            "sizes, and the law has no others"
        )
    return GroupRates(known=_by_rule(rule, scale, lr))


def _by_rule(rule: Parametrization, scale: Scale, lr: float) -> dict[str, GroupRate]:
    unit = rule.effective_lr("hidden", scale, 1.0).lr
    known = {}
    for name in roles_of_target(vars(scale)):
        role = cast("Role", name)
        ratio = rule.effective_lr(role, scale, 1.0).lr / unit
        source = (
            f"{ratio:.4g} times that of the hidden matrices by parametrization={rule.name}, reference width "
        )
        known[name] = GroupRate(
            lr=lr * ratio,
            source="the law" if name == "hidden" else f"{source}{rule.reference_width}",
            weight_decay_factor=rule.weight_decay_factor(role, scale),
            epsilon_factor=rule.epsilon_factor(role, scale),
        )
    return known


def _rule_holds(law: Law, rule: Parametrization) -> bool:
    """Whether the rule's own factor of the hidden matrices is lr/base_lr in every slice of the law."""
    used = [one for one in law.slices if one.used]
    for one in used:
        scale = _scale({**law.held, **one.covariates})
        if one.factor is None or scale is None:
            return False
        factor = rule.effective_lr("hidden", scale, 1.0).lr
        if not math.isclose(factor, one.factor, rel_tol=SAME):
            return False
    return bool(used)


def _scale(sizes: Mapping[str, int | float]) -> Scale | None:
    try:
        names = ("width", "depth", "tokens", "batch_tokens")
        experts = {name: int(sizes[name]) for name in ("granularity", "sparsity") if name in sizes}
        return Scale(**{name: round(sizes[name]) for name in names}, **experts)
    except (KeyError, ValueError):
        return None
