"""A recommendation as TrainingArguments of transformers, in the YAML that HfArgumentParser reads.

TrainingArguments has one rate and no optimizer of hyperp; a model of any kind can be trained with one by
`Trainer(optimizers=(optimizer, None))`, which is written out where the law is of such an optimizer, or where
the rates of groups differ.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hyperp.analysis.handover.base import Handover, Setting, Translation
from hyperp.analysis.handover.facts import trainer_facts

FACTS = trainer_facts()["hf"]
CLASSES = {"sso": "SSO", "muonsphere": "MuonSphere", "muonh": "MuonH", "adamh": "AdamH", "muon": "Muon"}
CLASSES |= {"adamw": "AdamW"}  # of hyperp.optim


def translate(handover: Handover) -> Translation:
    """The arguments; for another optimizer than AdamW, or several rates, what to pass to Trainer besides."""
    untranslated: list[str] = []
    known = handover.optimizer in FACTS.optimizers
    settings = [*_optimizer(handover, known, untranslated), *_schedule(handover, untranslated)]
    if handover.steps is not None:
        settings.append(Setting("max_steps", int(handover.steps.value), handover.steps.source))
    untranslated += _batch(handover)
    for name in ("width", "depth"):
        if name in handover.sizes:
            untranslated.append(f"{name} {handover.sizes[name]}: part of the model's configuration")
    if handover.of_hyperp_model:
        untranslated.append(
            "embeddings and unembedding: two matrices in the model of the fitted runs, so set "
            "tie_word_embeddings to false in the model's configuration"
        )
    groups = ({role: one.value for role, one in handover.rates.items()}, *handover.factors.values())
    differing = any(len(set(values.values())) > 1 for values in groups)
    lines = (*untranslated, *handover.leftovers())
    if handover.optimizer in CLASSES and (not known or differing):
        lines = (*lines, *optimizer_code(handover))
    return Translation(tuple(settings), lines)


def optimizer_code(handover: Handover) -> list[str]:
    """Python that builds the law's optimizer for a model, with rate, decay and epsilon for each group."""
    name = CLASSES[handover.optimizer]
    arguments = [f"lr={_by_role({role: one.value for role, one in handover.rates.items()})}"]
    options = adam_options(handover)
    arguments += [f"{key}={value}" for key, value in options.pop(handover.optimizer, {}).items()]
    arguments += [f"options={options}"] if options else []
    lines = [
        "the optimizer and the rates of its groups, which TrainingArguments lacks, in Python; an optimizer "
        "that is handed over has its own rate, weight decay, betas and epsilon, not those of the arguments:",
        f"  from hyperp.optim import {name}",
        f"  optimizer = {name}(",
        "      model,",
        *(f"      {one}," for one in arguments),
        "      unembedding=[model.lm_head],",
        "  )",
    ]
    if handover.factors:
        lines.append("  for group in optimizer.param_groups:  # the factors of the parametrization")
        for option, factors in handover.factors.items():
            lines.append(f'      if "{option}" in group:')
            lines.append(f'          group["{option}"] *= {_by_role(factors)}[group["role"]]')
    return [
        *lines,
        "  optimizer.project_()  # moves matrices to their spheres, where the optimizer has some",
        "  trainer = Trainer(model, arguments, optimizers=(optimizer, None), ...)",
    ]


def adam_options(handover: Handover) -> dict[str, dict[str, Any]]:
    """Betas, epsilon and weight decay of each algorithm of the law's optimizer, before factors of groups.

    A known weight decay is that of the optimizer's own matrices, or of AdamW beside it where these have none.
    """
    assert handover.optimizer_options is not None
    named = ("betas", "eps", "weight_decay")
    found = {
        algorithm: {
            key: tuple(value) if key == "betas" else value for key, value in of.items() if key in named
        }
        for algorithm, of in handover.optimizer_options["options"].items()
    }
    decay = handover.base_weight_decay()
    decaying = handover.optimizer if "weight_decay" in found[handover.optimizer] else "adamw"
    if decay is not None and (decaying == handover.optimizer or "weight_decay" in handover.given):
        found[decaying]["weight_decay"] = decay.value
    return {algorithm: options for algorithm, options in found.items() if options}


def _by_role(values: Mapping[str, float]) -> str:
    return "{" + ", ".join(f'"{role}": {value:.6g}' for role, value in values.items()) + "}"


def _optimizer(handover: Handover, known: bool, untranslated: list[str]) -> Iterator[Setting]:
    hidden = handover.rates["hidden"]
    if known:
        yield Setting(
            "optim", FACTS.optimizers[handover.optimizer], f"{handover.optimizer} of the fitted runs"
        )
    elif not handover.optimizer:
        untranslated.append("the law names no optimizer, so the rate is a comment")
    elif handover.optimizer not in CLASSES:
        untranslated.append(f"optimizer {handover.optimizer}: neither transformers nor hyperp.optim has it")
    yield Setting("learning_rate", hidden.value, handover.lr_comment(), known)
    decay, adam, clip = handover.weight_decay(), handover.adam(), handover.clip()
    if decay is None:
        untranslated.append("weight decay: the law does not hold it; the default of TrainingArguments is 0")
    else:
        yield Setting("weight_decay", decay.value, decay.source, known and decay.known)
    if adam is None or clip is None:
        untranslated.append("betas, epsilon and clipping: the law does not hold them")
        return
    for name, one in zip(("adam_beta1", "adam_beta2", "adam_epsilon"), adam, strict=True):
        yield Setting(name, one.value, one.source, known and one.known)
    yield Setting("max_grad_norm", clip.value, clip.source, clip.known)


def _schedule(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    """Linear and cosine decay to a share of the peak are both warmup_stable_decay without a stable part."""
    schedule = handover.schedule
    if schedule is None:
        untranslated.append(f"schedule {handover.schedule_name}: set lr_scheduler_type yourself")
        return
    source, known = handover.schedule_source, handover.defaults_known
    yield Setting("warmup_steps", schedule.warmup_steps, source, known)
    if schedule.shape == "constant":
        yield Setting("lr_scheduler_type", "constant_with_warmup", source)
        return
    if handover.steps is None:
        untranslated.append(
            f"schedule {schedule.shape}: the number of steps is not known, so set it yourself"
        )
        return
    decay = int(handover.steps.value) - schedule.warmup_steps
    comment = f"{source}; `{schedule.shape}` would end at 0"  # the type needs the arguments below
    yield Setting("lr_scheduler_type", "warmup_stable_decay", comment, known)
    values = {"num_decay_steps": decay, "decay_type": schedule.shape, "min_lr_ratio": schedule.final}
    yield Setting("lr_scheduler_kwargs", values, "a decay over the whole run, without a stable part", known)


def _batch(handover: Handover) -> list[str]:
    product = "per_device_train_batch_size x gradient_accumulation_steps x processes"
    batch = handover.batch_sequences
    if batch is not None:
        return [f"batch: {product} has to be {batch.value:.0f} ({batch.source})"]
    if handover.batch_tokens is not None:
        return [
            f"batch: {product} x tokens in a sequence has to be {handover.batch_tokens.value:.10g} tokens"
        ]
    return []
