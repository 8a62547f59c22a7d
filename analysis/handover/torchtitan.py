"""A recommendation as the TOML of torchtitan up to 0.2, which has one rate for all parameters.

torchtitan 0.3 is configured in Python, with a rate for each group: `parameter_groups` has that.
"""

from collections.abc import Iterator

from hyperp.analysis.handover.base import Handover, Setting, Translation
from hyperp.analysis.handover.facts import trainer_facts

FACTS = trainer_facts()["torchtitan"]
# Names of parameters in torchtitan's Llama models, from the specific to the general, for torchtitan 0.3.
PATTERNS = {
    "embedding": r"tok_embeddings\.",
    "unembedding": r"lm_head\.",
    "router": r"\.router\.",
    "expert": r"\.experts\.",
    "vector": r"norm\.|\.bias$",
    "hidden": r".*",
}


def translate(handover: Handover) -> Translation:
    """The tables [optimizer], [lr_scheduler] and [training]."""
    known = handover.optimizer in FACTS.optimizers
    untranslated = handover.missing_optimizer(FACTS.title, FACTS.optimizers)
    others = handover.other_rates(*(role for role in PATTERNS if role != "hidden"))
    untranslated += [f"{line}: optimizer.lr is the rate of all parameters" for line in others]
    settings = [*_optimizer(handover, known, untranslated), *_schedule(handover, untranslated)]
    settings += _training(handover, untranslated)
    for name in ("width", "depth"):
        if name in handover.sizes:
            untranslated.append(f"{name} {handover.sizes[name]}: part of the model that model.flavor names")
    lines = (*untranslated, *handover.leftovers())
    return Translation(tuple(settings), (*lines, *parameter_groups(handover, known)))


def parameter_groups(handover: Handover, known: bool) -> list[str]:
    """The same for torchtitan 0.3: one group a rate, as Python; empty for an optimizer that it lacks."""
    adam, decay = handover.adam(), handover.base_weight_decay()
    factors_known = all(handover.factor_known(option) for option in ("weight_decay", "eps"))
    if not known or adam is None or decay is None or not factors_known:
        return []
    first, second, eps = adam[0].value, adam[1].value, handover.base_epsilon()
    lines = ["torchtitan 0.3 is configured in Python; the same there, for parameters named as in its Llama:"]
    lines += ["  optimizer=OptimizersContainer.Config(param_groups=["]
    for role, pattern in PATTERNS.items():
        if role in handover.rates:
            values = {"lr": _rounded(handover.rates[role].value), "betas": (first, second)}
            values |= {
                "eps": _rounded(eps * handover.factor("eps", role)),
                "weight_decay": _rounded(decay.value * handover.factor("weight_decay", role)),
            }
            lines += [
                f'    ParamGroupConfig(pattern=r"{pattern}", optimizer_name="AdamW",',
                f"      optimizer_kwargs={values}),",
            ]
    return [*lines, "  ])"]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _optimizer(handover: Handover, known: bool, untranslated: list[str]) -> Iterator[Setting]:
    hidden = handover.rates["hidden"]
    if known:
        name = FACTS.optimizers[handover.optimizer]
        yield Setting("optimizer.name", name, f"{handover.optimizer} of the fitted runs")
    yield Setting("optimizer.lr", hidden.value, handover.lr_comment(), known)
    decay, adam = handover.weight_decay(), handover.adam()
    if decay is None:
        untranslated.append("weight decay: the law does not hold it; torchtitan's default is 0.1")
    else:
        yield Setting("optimizer.weight_decay", decay.value, decay.source, known and decay.known)
    if adam is None:
        untranslated.append("betas and epsilon: the law does not hold them")
        return
    for name, one in zip(("beta1", "beta2", "eps"), adam, strict=True):
        yield Setting(f"optimizer.{name}", one.value, one.source, known and one.known)


def _schedule(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    schedule = handover.schedule
    if schedule is None:
        untranslated.append(f"schedule {handover.schedule_name}: set lr_scheduler yourself")
        return
    source, known = handover.schedule_source, handover.defaults_known
    yield Setting("lr_scheduler.warmup_steps", schedule.warmup_steps, source, known)
    if schedule.shape == "constant":
        yield Setting("lr_scheduler.decay_ratio", 0.0, source)
        return
    yield Setting("lr_scheduler.decay_type", schedule.shape, f"{source}; it begins after the warm-up")
    yield Setting("lr_scheduler.min_lr_factor", schedule.final, source, known)


def _training(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    if handover.steps is not None:
        yield Setting("training.steps", int(handover.steps.value), handover.steps.source)
    if handover.sequence_length is not None:
        yield Setting("training.seq_len", handover.sequence_length, "as given")
    if handover.batch_sequences is not None:
        batch = handover.batch_sequences
        yield Setting("training.global_batch_size", int(batch.value), batch.source)
    elif handover.batch_tokens is not None:
        untranslated.append(
            f"batch of {handover.batch_tokens.value:.10g} tokens: training.global_batch_size counts "
            "sequences; give the length of one (--sequence-length)"
        )
    clip = handover.clip()
    if clip is not None:
        yield Setting("training.max_norm", clip.value, clip.source, clip.known)
