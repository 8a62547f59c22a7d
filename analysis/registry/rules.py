"""What is known to go wrong in a planned run: each rule with its source, and the findings of all."""

from collections.abc import Callable
from dataclasses import dataclass

from hyperp.analysis.registry.run_config import RunConfig
from hyperp.analysis.registry.target import SPHERE_OPTIMIZERS
from hyperp.validation import Strict

MATRIX_OPTIMIZERS = ("muon", "muonh", "muonsphere", "sso")
WIDTH_RULES = ("mup", "mup++", "completep", "completedp")  # the rate of hidden matrices falls with width
UNTIED_RULES = (*WIDTH_RULES, "hyperp")
SAME = 0.02  # relative: numbers of steps and rates that differ less count as equal


class Finding(Strict):
    """A rule that a configuration breaks: the rule's id, what is wrong with which values, and its source."""

    rule: str
    message: str
    source: str


@dataclass(frozen=True)
class Rule:
    """Something that a run should not do.

    Attributes:
        id: its name.
        text: what it says.
        source: where that stands.
        check: what is wrong with a configuration, with its values, or None.
    """

    id: str
    text: str
    source: str
    check: Callable[[RunConfig], str | None]


def examine(config: RunConfig) -> list[Finding]:
    """The findings of all rules; a rule that needs what is not known finds nothing."""
    found = [(rule, rule.check(config)) for rule in RULES]
    return [
        Finding(rule=rule.id, message=message, source=rule.source)
        for rule, message in found
        if message is not None
    ]


def _batch_in_sequences(config: RunConfig) -> str | None:
    target, steps = config.target, config.steps
    batch, sequence = target.batch_tokens, target.sequence_length
    if batch is None or sequence is None:
        return None
    if batch < sequence:
        return (
            f"batch_tokens is {batch:g}, less than one sequence of {sequence:g} tokens: it counts sequences; "
            f"in tokens, which every law here means, it is {batch * sequence:g}"
        )
    if target.tokens is not None and steps is not None and _same(target.tokens, steps * batch * sequence):
        return (
            f"tokens is {target.tokens:g}, which is {steps:g} steps of {batch:g} sequences of {sequence:g}: "
            f"batch_tokens must be {batch * sequence:g}"
        )
    return None


def _one_rate_for_all(config: RunConfig) -> str | None:
    rates = config.rates
    if len(rates) > 1 and not _same(min(rates.values()), max(rates.values())):
        listed = ", ".join(f"{group} {rate:.3g}" for group, rate in rates.items())
        if (config.scheduler or "").lower().removesuffix("lr") in ("onecycle", "cyclic"):
            return (
                f"{config.scheduler} sets every group to its max_lr, unless that is a list, and the groups "
                f"are to have {listed}"
            )
    low = [group for group, floor in config.floors.items() if group in rates and floor >= rates[group]]
    if low:
        group = low[0]
        return (
            f"the schedule ends at a rate of {config.floors[group]:.3g} for {group}, whose peak is "
            f"{rates[group]:.3g}: its rate never falls"
        )
    return None


def _decay_on_a_sphere(config: RunConfig) -> str | None:
    decay = config.weight_decay.get("hidden", 0.0)
    if config.optimizer in SPHERE_OPTIMIZERS and decay > 0:
        return (
            f"{config.optimizer} puts every hidden matrix back to its norm, so that the weight decay of "
            f"{decay:g} changes nothing to first order; set it to 0"
        )
    return None


def _embedding_as_hidden(config: RunConfig) -> str | None:
    if config.embedding_optimizer in MATRIX_OPTIMIZERS:
        return (
            f"the embedding is trained with {config.embedding_optimizer}, which is for matrices between "
            "hidden layers; its rows are looked up one by one, and AdamW is usual for them"
        )
    factor, rates = config.width_factor, config.rates
    if config.parametrization not in WIDTH_RULES or factor is None or _same(factor, 1.0):
        return None
    if "hidden" in rates and "embedding" in rates and _same(rates["hidden"], rates["embedding"]):
        return (
            f"embedding and hidden matrices both have the rate {rates['hidden']:.3g} at {factor:g} times the "
            f"base width; under {config.parametrization} the hidden rate falls as 1/width, that of the "
            "embedding does not"
        )
    return None


def _warmup_beyond_the_run(config: RunConfig) -> str | None:
    warmup, steps = config.warmup_steps, config.known_steps
    if warmup is None or steps is None or warmup < steps:
        return None
    return f"the warm-up takes {warmup:g} steps and the run has {steps:g}: it never reaches its peak rate"


def _decay_beside_the_run(config: RunConfig) -> str | None:
    decay, steps = config.decay_steps, config.known_steps
    if decay is None or steps is None or _same(decay, steps):
        return None
    way = "ends before its rate has fallen" if decay > steps else "goes on at the last rate"
    return f"the schedule ends at step {decay:g} and the run has {steps:g}, so that it {way}"


def _tied_under_an_untied_rule(config: RunConfig) -> str | None:
    if not config.tied_embeddings:
        return None
    first, last = config.rates.get("embedding"), config.rates.get("unembedding")
    if first is not None and last is not None and not _same(first, last):
        return (
            f"embedding and unembedding are one matrix, and have the rates {first:.3g} and {last:.3g}, of "
            "which only one can hold"
        )
    if config.parametrization in UNTIED_RULES:
        return (
            f"embedding and unembedding are one matrix, while {config.parametrization} treats the two "
            "differently; untie them, or expect the optimum to move with width"
        )
    return None


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * max(abs(one), abs(other))


RULES: tuple[Rule, ...] = (
    Rule(
        "batch-in-sequences",
        "a batch is in tokens",
        "arXiv 2603.28743 and github.com/marin-community/marin issue 5951, whose B differ in that",
        _batch_in_sequences,
    ),
    Rule(
        "scheduler-overrides-groups",
        "a schedule keeps the ratios of the groups' rates",
        "torch.optim.lr_scheduler.OneCycleLR and CyclicLR; Megatron-LM's --min-lr and --decoupled-min-lr",
        _one_rate_for_all,
    ),
    Rule(
        "decay-on-a-sphere",
        "matrices on a sphere have no weight decay",
        "arXiv 2603.28743; arXiv 2601.08393",
        _decay_on_a_sphere,
    ),
    Rule(
        "embedding-as-hidden",
        "an embedding is not scaled, nor orthogonalized, as a hidden matrix",
        "arXiv 2203.03466, table 8; kellerjordan.github.io/posts/muon",
        _embedding_as_hidden,
    ),
    Rule(
        "warmup-beyond-the-run",
        "the warm-up ends before the run",
        "by definition of the peak rate",
        _warmup_beyond_the_run,
    ),
    Rule(
        "decay-beside-the-run",
        "the schedule ends with the run, as in the runs behind every law here",
        "arXiv 2203.15556, appendix B",
        _decay_beside_the_run,
    ),
    Rule(
        "tied-under-an-untied-rule",
        "a rule for untied embeddings needs untied ones",
        "arXiv 2203.03466, table 8, where input and output weights differ",
        _tied_under_an_untied_rule,
    ),
)
