"""A recommendation as arguments of Megatron-LM.

Megatron has one rate for everything (--lr) and one for embeddings and unembedding together (--decoupled-lr).
"""

from collections.abc import Iterator

from hyperp.analysis.handover.base import INSIDE, Handover, Setting, Translation
from hyperp.analysis.handover.facts import trainer_facts

FACTS = trainer_facts()["megatron"]
# Muon's step over lr: sqrt(max(1, d_out/d_in)) is Megatron's shape_scaling, by default it is spectral.
MUON_SCALES = {"original": "shape_scaling"}


def translate(handover: Handover) -> Translation:
    """The arguments. An optimizer that Megatron does not have leaves the rates as comments."""
    untranslated = handover.missing_optimizer(FACTS.title, FACTS.optimizers)
    untranslated += [f"{line}: no rate of its own" for line in handover.other_rates(*INSIDE)]
    known = handover.optimizer in FACTS.optimizers
    settings = [*_sizes(handover, untranslated), *_embeddings(handover, untranslated)]
    settings += [*_rates(handover, known, untranslated), *_schedule(handover, untranslated)]
    settings += [*_optimizer(handover, known, untranslated)]
    return Translation(tuple(settings), (*untranslated, *handover.leftovers()))


def _sizes(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    for name, argument in (("depth", "--num-layers"), ("width", "--hidden-size")):
        if name in handover.sizes:
            yield Setting(argument, handover.sizes[name], "the target")
    if handover.sequence_length is not None:
        yield Setting("--seq-length", handover.sequence_length, "as given")
    if handover.batch_sequences is not None:
        yield Setting(
            "--global-batch-size", int(handover.batch_sequences.value), handover.batch_sequences.source
        )
    elif handover.batch_tokens is not None:
        untranslated.append(
            f"batch of {handover.batch_tokens.value:.10g} tokens: --global-batch-size counts sequences; give "
            "the length of one (--sequence-length)"
        )
    if handover.steps is not None:
        yield Setting("--train-iters", int(handover.steps.value), handover.steps.source)


def _embeddings(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    """Megatron ties embeddings and unembedding unless told otherwise."""
    if handover.of_hyperp_model:
        source = "the model of the fitted runs has an unembedding of its own"
        yield Setting("--untie-embeddings-and-output-weights", True, source)
    else:
        untranslated.append(
            "embeddings and unembedding: the law does not say whether they are one matrix; in Megatron they "
            "are, unless --untie-embeddings-and-output-weights is set"
        )


def _rates(handover: Handover, known: bool, untranslated: list[str]) -> Iterator[Setting]:
    ends_known = known and handover.defaults_known
    final = 1.0 if handover.schedule is None else handover.schedule.final
    hidden = handover.rates["hidden"]
    yield Setting("--lr", hidden.value, handover.lr_comment(), known)
    if handover.schedule is not None and handover.schedule.shape != "constant":
        yield Setting(
            "--min-lr", final * hidden.value, f"{final:g} of --lr, {handover.schedule_source}", ends_known
        )
    ends = [handover.rates[role] for role in ("embedding", "unembedding") if role in handover.rates]
    if len({one.value for one in ends}) > 1:
        untranslated += handover.other_rates("embedding", "unembedding")
        untranslated.append("--decoupled-lr is one rate for embeddings and unembedding, which differ here")
    elif ends and ends[0].value != hidden.value:
        source = f"embeddings and unembedding: {ends[0].source}"
        yield Setting("--decoupled-lr", ends[0].value, source, known)
        if handover.schedule is not None and handover.schedule.shape != "constant":
            comment = f"{final:g} of --decoupled-lr"
            yield Setting("--decoupled-min-lr", final * ends[0].value, comment, ends_known)


def _schedule(handover: Handover, untranslated: list[str]) -> Iterator[Setting]:
    schedule = handover.schedule
    if schedule is None:
        how = "set --lr-decay-style, --lr-warmup-iters and --min-lr yourself"
        untranslated.append(f"schedule {handover.schedule_name}: {how}")
        return
    yield Setting("--lr-decay-style", schedule.shape, handover.schedule_source)
    source, known = handover.schedule_source, handover.defaults_known
    yield Setting("--lr-warmup-iters", schedule.warmup_steps, source, known)
    if handover.steps is not None:
        yield Setting("--lr-decay-iters", int(handover.steps.value), "the whole run")


def _optimizer(handover: Handover, known: bool, untranslated: list[str]) -> Iterator[Setting]:
    if known:
        name = FACTS.optimizers[handover.optimizer]
        yield Setting("--optimizer", name, f"{handover.optimizer} of the fitted runs")
    decay = handover.weight_decay()
    if decay is None:
        untranslated.append("weight decay: the law does not hold it; Megatron's default is 0.01")
    else:
        yield Setting("--weight-decay", decay.value, decay.source, decay.known)
    if known and handover.optimizer == "muon":
        yield from _muon(handover)
    adam, clip = handover.adam(), handover.clip()
    if adam is None or clip is None:
        untranslated.append("betas, epsilon and clipping: the law does not hold them")
        return
    for name, one in zip(("--adam-beta1", "--adam-beta2", "--adam-eps"), adam, strict=True):
        yield Setting(name, one.value, one.source, one.known)
    yield Setting("--clip-grad", clip.value, clip.source, clip.known)


def _muon(handover: Handover) -> Iterator[Setting]:
    assert handover.optimizer_options is not None
    options = handover.optimizer_options["options"]["muon"]
    source = "the default of optim=muon"
    known = handover.defaults_known
    yield Setting("--muon-momentum", options["momentum"], source, known)
    if options["nesterov"]:
        yield Setting("--muon-nesterov", True, source, known)
    yield Setting(
        "--muon-scale-mode",
        MUON_SCALES[options["scale_mode"]],
        f"scale_mode={options['scale_mode']} of optim=muon by Megatron's name, sqrt(max(1, d_out/d_in))",
        known,
    )
