"""A recommendation as arguments of nanochat's scripts/base_train.py, which trains matrices with Muon.

nanochat multiplies what it is given: every rate by sqrt(B / 2^19), and those of AdamW's groups by
sqrt(768 / width) besides. The arguments here are the recommended rates divided by these factors.
"""

import math
from collections.abc import Iterator

from hyperp.analysis.handover.base import Handover, Setting, Translation
from hyperp.analysis.handover.facts import trainer_facts

FACTS = trainer_facts()["nanochat"]
REFERENCE_BATCH = 2**19  # B_REF of base_train.py
REFERENCE_WIDTH = 768  # in GPT.setup_optimizer
HEAD_DIM = 128  # default of --head-dim; the width is rounded up to a multiple of it
ARGUMENT_OF_ROLE = {
    "hidden": "--matrix-lr",
    "embedding": "--embedding-lr",
    "unembedding": "--unembedding-lr",
}


def translate(handover: Handover) -> Translation:
    """The arguments; rates need the batch, and those of embedding and unembedding the width too."""
    untranslated = handover.missing_optimizer(FACTS.title, FACTS.optimizers)
    settings = [*_sizes(handover, untranslated), *_rates(handover, untranslated)]
    settings += _schedule(handover, untranslated)
    settings += _weight_decay(handover, untranslated)
    if handover.rates.keys() & {"vector", "router", "expert"}:
        untranslated.append(
            "vector: nanochat's norms have no gains; its scalars (--scalar-lr) are of no group here"
        )
    return Translation(tuple(settings), (*untranslated, *handover.leftovers()))


def _sizes(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    width, depth = handover.sizes.get("width"), handover.sizes.get("depth")
    if depth is not None:
        yield Setting("--depth", depth, "the target")
    if width is not None and depth is not None:
        ratio = int(width // depth)
        if math.ceil(depth * ratio / HEAD_DIM) * HEAD_DIM == width:
            yield Setting("--aspect-ratio", ratio, f"width {width}, which is depth times this in whole heads")
        else:
            untranslated.append(
                f"width {width}: nanochat's is depth times --aspect-ratio, in whole heads of {HEAD_DIM}"
            )
    if handover.sequence_length is not None:
        yield Setting("--max-seq-len", handover.sequence_length, "as given")
    if handover.batch_tokens is not None:
        yield Setting("--total-batch-size", int(handover.batch_tokens.value), handover.batch_tokens.source)
    if handover.steps is not None:
        yield Setting("--num-iterations", int(handover.steps.value), handover.steps.source)


def _rates(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    if handover.batch_tokens is None:
        rate = f"lr = {handover.lr:.6g} of the hidden matrices"
        untranslated.append(
            f"{rate}: nanochat multiplies rates by sqrt(batch / 2^19), and the batch is not known"
        )
        return
    batch = math.sqrt(handover.batch_tokens.value / REFERENCE_BATCH)
    width = handover.sizes.get("width")
    for role, argument in ARGUMENT_OF_ROLE.items():
        if role not in handover.rates:
            continue
        rate, factor, text = handover.rates[role], batch, f"sqrt(batch / 2^19) = {batch:.4g}"
        if role != "hidden":
            if width is None:
                untranslated.append(f"{role}: lr = {rate.value:.6g}; the factor of its rate needs the width")
                continue
            narrow = math.sqrt(REFERENCE_WIDTH / width)
            factor, text = batch * narrow, f"{text} and sqrt(768 / width) = {narrow:.4g}"
        comment = f"{role}: {rate.value:.6g}, {rate.source}; divided by what nanochat multiplies: {text}"
        yield Setting(argument, rate.value / factor, comment, handover.optimizer in FACTS.optimizers)


def _schedule(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    schedule = handover.schedule
    if schedule is None or schedule.shape == "cosine":
        untranslated.append(
            f"schedule {handover.schedule_name}: nanochat warms up, stays and decays linearly"
        )
        return
    source, known = handover.schedule_source, handover.defaults_known
    yield Setting("--warmup-steps", schedule.warmup_steps, source, known)
    yield Setting("--warmdown-ratio", 1.0 if schedule.shape == "linear" else 0.0, source)
    if schedule.shape == "linear":
        yield Setting("--final-lr-frac", schedule.final, source, known)


def _weight_decay(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    decay = handover.weight_decay()
    if decay is None:
        untranslated.append("weight decay: the law does not hold it; nanochat's default is 0.28")
    elif decay.value == 0:
        yield Setting("--weight-decay", 0.0, decay.source, decay.known)
    else:
        untranslated.append(
            f"weight decay {decay.value:.6g} ({decay.source}): nanochat multiplies --weight-decay by factors "
            "of its own count of parameters and lets it fall to 0 over the run"
        )
    untranslated.append(
        "weight decay of embedding and unembedding, betas and epsilon: constants in nanochat's code"
    )
