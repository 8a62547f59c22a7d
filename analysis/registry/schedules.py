"""The shape of the schedule that a trainer's configuration asks for.

Every trainer here can warm up, stay at the peak and then decay. Where the decay takes all that the warm-up
leaves, nothing stays, and the schedule is that of the decay alone; where it takes no step, it is constant.
"""

from hyperp.analysis.registry.run_config import Reading
from hyperp.analysis.registry.target import ScheduleName

MEGATRON_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "wsd": "wsd",
    "inverse-square-root": "inverse-square-root",
}
HF_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
    "inverse_sqrt": "inverse-square-root",
}
DECAYS = {"linear": "linear", "cosine": "cosine"}  # of the decays that trainers have, those with a name here


def nanochat_schedule(found: Reading, steps: float | None) -> ScheduleName:
    """A linear decay over the share --warmdown-ratio of the run, 0.65 by default."""
    ratio = found.number("warmdown-ratio", default=0.65) or 0.0
    if ratio <= 0:
        return "constant"
    warmup = found.number("warmup-steps", default=40) or 0.0
    stable = 1 - ratio if steps is None else steps - ratio * steps - warmup
    return "linear" if stable <= 0 else "wsd"


def torchtitan_schedule(found: Reading, steps: float | None) -> ScheduleName | None:
    """A decay over the share lr_scheduler.decay_ratio of the run; without it, over all after the warm-up."""
    ratio = found.number("lr_scheduler.decay_ratio")
    warmup = found.number("lr_scheduler.warmup_steps", default=200) or 0.0
    if ratio is not None and ratio <= 0:
        return "constant"
    if ratio is not None and (ratio < 1 if steps is None else steps - ratio * steps - warmup > 0):
        return "wsd"
    return found.word("lr_scheduler.decay_type", DECAYS, "linear")


def megatron_schedule(found: Reading, steps: float | None, warmup: float | None) -> ScheduleName | None:
    """--lr-decay-style; WSD decays over the last --lr-wsd-decay-iters of these steps."""
    style = found.word("lr-decay-style", MEGATRON_SCHEDULES, "linear")
    decay = found.number("lr-wsd-decay-iters")
    if style != "wsd" or decay is None or steps is None or steps - decay - (warmup or 0.0) > 0:
        return style
    return found.word("lr-wsd-decay-style", DECAYS, "exponential")


def hf_schedule(found: Reading, steps: float | None, warmup: float | None) -> ScheduleName | None:
    """lr_scheduler_type; warmup_stable_decay has the lengths of its parts in lr_scheduler_kwargs."""
    name = found.word("lr_scheduler_type", HF_SCHEDULES, "linear")
    if name != "wsd":
        return name
    stable = found.number("lr_scheduler_kwargs.num_stable_steps")
    decay = found.number("lr_scheduler_kwargs.num_decay_steps")
    if stable is None and None not in (steps, decay, warmup):
        assert steps is not None
        assert decay is not None
        assert warmup is not None
        stable = steps - decay - warmup
    if stable is None or stable > 0:
        return "wsd"
    return found.word("lr_scheduler_kwargs.decay_type", DECAYS, "cosine")


def hf_floor(found: Reading, rate: float | None) -> float | None:
    """The rate at which the schedule ends: min_lr, or the share of the peak that some schedules take."""
    floor = found.number("lr_scheduler_kwargs.min_lr")
    share = found.number("lr_scheduler_kwargs.min_lr_ratio", "lr_scheduler_kwargs.min_lr_rate")
    return share * rate if floor is None and share is not None and rate is not None else floor
