"""What the published laws say of one run, how far each is from home there, and what they agree on."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from hyperp.analysis.answers import Answer
from hyperp.analysis.registry.agreement import opinion_words
from hyperp.analysis.registry.law import PublishedLaw, published_laws
from hyperp.analysis.registry.target import (
    WORDS,
    Reference,
    Target,
    require_known,
)
from hyperp.validation import Strict

if TYPE_CHECKING:  # a command that prints JSON does without
    import pandas as pd

NEAR = 1.2  # sizes within this factor count as the same


class OwnRate(Strict):
    """What a law of the user's own says of the target: its rate with the prediction interval."""

    name: str
    optimizer: str
    lr: float
    low: float
    high: float


class Plan(Strict):
    """How the run is to be trained; what is None is not known and not compared.

    Attributes:
        optimizer: of the hidden matrices.
        schedule: linear, cosine, ...
        parametrization: standard, mup, ...
        lr: the peak rate of the hidden matrices.
        weight_decay: of the hidden matrices, decoupled.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # `require_valid` says which number is wrong

    optimizer: str
    schedule: str | None = None
    parametrization: str | None = None
    lr: float | None = None
    weight_decay: float | None = None

    def require_valid(self) -> None:
        """Raise ValueError for a word that is not known, or a number that is out of range."""
        for name, known in WORDS.items():
            if (value := getattr(self, name)) is not None:
                require_known(name, value, known)
        require_valid_rates(self.lr, self.weight_decay)


def require_valid_rates(lr: float | None, weight_decay: float | None) -> None:
    """Raise ValueError for a rate that is not positive, or a negative weight decay; None is not known."""
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be finite and positive, got {lr!r}")
    if weight_decay is not None and not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be finite and at least 0, got {weight_decay!r}")


class Row(Strict):
    """One published law at the target.

    Attributes:
        lr: its rate; None where `needs` says what is missing.
        same_optimizer: whether it is a law of the optimizer that was asked about.
        extrapolation: for each of its quantities how many times the target lies beyond its range, 1 inside;
            None where no range was published.
        mismatch: what else differs between its runs and the target.
        to_plan: its rate over the one that is planned; None of another optimizer, whose step is another one.
        to_own: its rate over that of each of the user's own laws, if the optimizer is the same.
        within_own: whether it lies in the interval of each of them.
        starts_from: the own law whose middle this rule scales, left out of `to_own` and `within_own`,
            since that law would confirm itself; None of any other row.
    """

    law: PublishedLaw
    lr: float | None
    needs: list[str]
    same_optimizer: bool
    extrapolation: dict[str, float | None]
    mismatch: list[str]
    to_plan: float | None
    to_own: dict[str, float]
    within_own: dict[str, bool]
    starts_from: str | None = None

    @property
    def farthest(self) -> float | None:
        """The largest extrapolation factor, None where the law publishes no range."""
        return max((factor for factor in self.extrapolation.values() if factor is not None), default=None)


class Decay(Strict):
    """The weight decay that a timescale law gives at one rate of AdamW, and what the plan has."""

    law: PublishedLaw
    timescale: float
    lr: float
    weight_decay: float
    planned: float | None


class Opinion(Answer, Strict):
    """What the published laws say of a target.

    Attributes:
        reference_law: the own law whose middle is the reference; None of a reference that was given.
        assumed: what was filled in about the target.
        declined: laws of the user's own that could not say, with the reason.
        words: the spread, and what the laws agree on.
    """

    target: Target
    plan: Plan
    reference: Reference | None
    reference_law: str | None = None
    own: list[OwnRate]
    rows: list[Row]
    decay: list[Decay]
    assumed: list[str]
    declined: list[str]
    words: list[str]

    def headline(self) -> str:
        """The spread of the laws of this optimizer in one line."""
        return self.words[0]

    def notes(self) -> Sequence[str]:
        """What the laws agree on."""
        return self.words[1:]

    def reference_words(self) -> str | None:
        """Where the reference of the rules comes from, in one line; None without one."""
        if self.reference is None:
            return None
        sizes = self.reference.target.model_dump(exclude_none=True)
        values = ", ".join(f"{name}={value:.6g}" for name, value in sizes.items())
        law = self.reference_law
        origin = "as given" if law is None else f"middle of {law}"
        line = f"reference: {origin}, {values}, lr={self.reference.lr:.4g}"
        silent = law is not None and all(one.name != law for one in self.own)
        return f"{line}; {law} itself says nothing at the target" if silent else line

    def to_frame(self) -> "pd.DataFrame":
        """A row for each law that could be evaluated."""
        import pandas as pd

        rows = [
            {
                "law": row.law.id,
                "optimizer": row.law.optimizer,
                "lr": row.lr,
                "farthest": row.farthest,
                "to_plan": row.to_plan,
                "mismatch": "; ".join(row.mismatch),
                "starts_from": row.starts_from,
            }
            for row in self.rows
            if row.lr is not None
        ]
        columns = ["law", "optimizer", "lr", "farthest", "to_plan", "mismatch", "starts_from"]
        return pd.DataFrame(rows, columns=columns)


def form_opinion(
    target: Target,
    plan: Plan,
    reference: Reference | None = None,
    own: Sequence[OwnRate] = (),
    declined: Sequence[str] = (),
    assumed: Sequence[str] = (),
    reference_law: str | None = None,
) -> Opinion:
    """Evaluate every published law at the target.

    Args:
        target: the run; a law that needs more than is known of it is listed with what it needs.
        plan: how it is to be trained.
        reference: a run with a known best rate, for the rules that scale one.
        own: what the user's own laws say of the target.
        declined: why others of them say nothing.
        assumed: what was filled in about the target already.
        reference_law: the name of the own law whose middle is the reference.

    Raises:
        ValueError: an unknown word or a number out of range in the plan, or nothing known of the target.
    """
    plan.require_valid()
    if not target.model_dump(exclude_none=True):
        raise ValueError("tokens, batch_tokens, width, depth or params must be given, got none of them")
    laws = [law for law in published_laws() if law.kind != "timescale"]
    rows = [_row(law, target, plan, reference, own, reference_law) for law in laws]
    rows.sort(key=lambda row: (not row.same_optimizer, row.lr is None, row.lr or 0.0, row.law.id))
    return Opinion(
        target=target,
        plan=plan,
        reference=reference,
        reference_law=reference_law,
        own=list(own),
        rows=rows,
        decay=_decays(target, plan),
        assumed=[*assumed, *_assumed(target)],
        declined=list(declined),
        words=opinion_words([row for row in rows if row.same_optimizer], plan, own),
    )


def _row(
    law: PublishedLaw,
    target: Target,
    plan: Plan,
    reference: Reference | None,
    own: Sequence[OwnRate],
    reference_law: str | None,
) -> Row:
    needs = law.missing(target)
    same = law.optimizer == plan.optimizer
    if law.kind == "rule":  # the reference is a run of the planned optimizer
        needs += _reference_needs(law, reference if same else None)
    lr = None if needs else law.evaluate(target, reference)
    comparable = lr if same else None
    starts_from = reference_law if law.kind == "rule" and comparable is not None else None
    others = [] if comparable is None else [one for one in own if one.name != starts_from]
    measured = {name: target.measure(name) for name in law.quantities}
    return Row(
        law=law,
        lr=lr,
        needs=needs,
        same_optimizer=same,
        extrapolation={
            name: law.quantities[name].extrapolation(value)
            for name, value in measured.items()
            if value is not None
        },
        mismatch=[*_mismatch(law, target, plan, reference), *_capped(law, lr)],
        to_plan=None if comparable is None or plan.lr is None else comparable / plan.lr,
        to_own={one.name: (comparable or 0.0) / one.lr for one in others},
        within_own={one.name: one.low <= (comparable or 0.0) <= one.high for one in others},
        starts_from=starts_from,
    )


def _reference_needs(law: PublishedLaw, reference: Reference | None) -> list[str]:
    """What a reference must say for a rule, and does not."""
    if reference is None:
        return [f"a reference run of {law.optimizer}"]
    return [f"{name} of the reference" for name in law.exponents if reference.target.measure(name) is None]


def _mismatch(law: PublishedLaw, target: Target, plan: Plan, reference: Reference | None) -> list[str]:
    """What differs between the runs of a law and the plan, but for sizes beyond its range."""
    pairs = {
        "optimizer": (law.optimizer, plan.optimizer),
        "schedule": (law.schedule, plan.schedule),
        "parametrization": (law.parametrization, plan.parametrization),
    }
    found = [
        f"{name} {theirs}" for name, (theirs, ours) in pairs.items() if theirs and ours and theirs != ours
    ]
    if law.kind == "rule" and reference is not None:
        found += _silences(law, target, reference)
    return found + _other_batch(law, target)


def _other_batch(law: PublishedLaw, target: Target) -> list[str]:
    """The batch that a law was tuned together with, if that of the target is another one."""
    theirs = None if law.batch is None else law.batch.evaluate(target)
    if theirs is None or target.batch_tokens is None:
        return []
    if max(theirs / target.batch_tokens, target.batch_tokens / theirs) <= NEAR:
        return []
    return [f"its batch would be {theirs:.3g} tokens"]


def _capped(law: PublishedLaw, lr: float | None) -> list[str]:
    return [f"at its cap of {law.cap:g}"] if law.cap is not None and lr == law.cap else []


def _silences(law: PublishedLaw, target: Target, reference: Reference) -> list[str]:
    """Sizes in which the target differs from the reference while the rule says nothing about them."""
    found = []
    for name in ("tokens", "batch_tokens", "width", "depth"):
        here, there = target.measure(name), reference.target.measure(name)
        if name in law.quantities or here is None or there is None:
            continue
        if max(here / there, there / here) > NEAR:
            found.append(f"silent on {name}, {here / there:.3g} times the reference's")
    return found


def _decays(target: Target, plan: Plan) -> list[Decay]:
    """The weight decay B/(lr tau D) that belongs to the planned rate, where enough is known."""
    batch, tokens = target.batch_tokens, target.tokens
    if plan.lr is None or batch is None or tokens is None:
        return []
    found = []
    for law in published_laws():
        if law.kind == "timescale" and law.optimizer == plan.optimizer and not law.missing(target):
            timescale = law.evaluate(target)
            decay = batch / (plan.lr * timescale * tokens)
            found.append(
                Decay(law=law, timescale=timescale, weight_decay=decay, lr=plan.lr, planned=plan.weight_decay)
            )
    return found


def _assumed(target: Target) -> list[str]:
    if target.params is None and target.parameters is not None:
        return [f"params = 12 depth width^2 = {target.parameters:.3g}, as of a dense model"]
    return []
