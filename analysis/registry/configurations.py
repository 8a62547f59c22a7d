"""Read the configuration of a run: a reader for each trainer, and one for a map of the user's own.

The names are those of nanochat's scripts/base_train.py (commit 92d63d4), torchtitan's job_config.py (commit
000204a), Megatron-LM's arguments (commit d98e8a6) and transformers' TrainingArguments. A size that a
configuration leaves to the machine or to the data is noted, and taken from `given` where that has it.
"""

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hyperp.analysis.registry.own_map import flatten, read_own
from hyperp.analysis.registry.run_config import Reading, RunConfig, present
from hyperp.analysis.registry.schedules import (
    hf_floor,
    hf_schedule,
    megatron_schedule,
    nanochat_schedule,
    torchtitan_schedule,
)
from hyperp.analysis.registry.target import Target, require_known
from hyperp.validation import invalid_field

Reader = Callable[[Reading, Target], RunConfig]
NANOCHAT_BATCH = 2**19  # tokens a step at which nanochat's rates are meant
NANOCHAT_WIDTH = 768  # likewise the width, for what AdamW trains
HF_ADAMW = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_apex_fused",
    "adamw_anyprecision",
    "adamw_hf",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
)


def read_nanochat(found: Reading, given: Target) -> RunConfig:
    """The command line of nanochat's base_train: its rates are scaled with the batch and the width."""
    depth = found.above_zero("depth", 20)
    head = found.above_zero("head-dim", 128)
    aspect = found.above_zero("aspect-ratio", 64)
    width = -(-depth * aspect // head) * head
    batch = found.positive("total-batch-size") or given.batch_tokens
    steps = found.positive("num-iterations")
    if batch is None:
        found.missing("batch_tokens and the rates", "nanochat chooses its batch; give --batch-tokens")
    if steps is None and given.tokens is None:
        found.missing("tokens", "nanochat derives them from the ratio and its vocabulary; give --tokens")
    found.missing("the weight decay of a step", "nanochat scales --weight-decay with its batch and tokens")
    rates: dict[str, float] = {}
    if batch is not None:
        by_batch = (batch / NANOCHAT_BATCH) ** 0.5
        by_width = by_batch * (width / NANOCHAT_WIDTH) ** -0.5
        rates = {
            "hidden": by_batch * found.above_zero("matrix-lr", 0.02),
            "embedding": by_width * found.above_zero("embedding-lr", 0.3),
            "unembedding": by_width * found.above_zero("unembedding-lr", 0.008),
        }
    return RunConfig(
        trainer="nanochat",
        target=Target(
            tokens=batch * steps if batch and steps else None,
            batch_tokens=batch,
            width=width,
            depth=depth,
            sequence_length=found.positive("max-seq-len", default=2048),
        ),
        steps=steps,
        optimizer="muon",
        embedding_optimizer="adamw",
        schedule=nanochat_schedule(found, steps),
        rates=rates,
        weight_decay={"hidden": found.number("weight-decay", default=0.28) or 0.0},
        warmup_steps=found.number("warmup-steps", default=40),
        tied_embeddings=False,
        unread=found.unread,
    )


def read_torchtitan(found: Reading, given: Target) -> RunConfig:
    """A torchtitan TOML file; the model's sizes are in its code, so that they have to be given."""
    sequence = found.positive("training.seq_len", default=2048)
    steps = found.positive("training.steps", default=10000)
    sequences = found.positive("training.global_batch_size") or _torchtitan_batch(found)
    if sequences is None and given.batch_tokens is None:
        found.missing("batch_tokens", "the number of data-parallel ranks is not in it; give --batch-tokens")
    if given.width is None or given.depth is None:
        found.missing("width and depth", "they follow from the flavor in the code; give --width and --depth")
    batch = sequences * sequence if sequences and sequence else given.batch_tokens
    rate = found.positive("optimizer.lr", default=8e-4)
    optimizer = found.word("optimizer.name", {"adam": "adamw", "adamw": "adamw"}, "AdamW")
    return RunConfig(
        trainer="torchtitan",
        target=Target(
            tokens=batch * steps if batch and steps else None, batch_tokens=batch, sequence_length=sequence
        ),
        steps=steps,
        optimizer=optimizer,
        embedding_optimizer=optimizer,
        schedule=torchtitan_schedule(found, steps),
        rates=present(hidden=rate, embedding=rate, unembedding=rate),
        weight_decay=present(hidden=found.number("optimizer.weight_decay", default=0.1)),
        warmup_steps=found.number("lr_scheduler.warmup_steps", default=200),
        unread=found.unread,
    )


def _torchtitan_batch(found: Reading) -> float | None:
    """Sequences a step from the local batch and the data-parallel degrees, if the file has all of them."""
    local = found.positive("training.local_batch_size", "training.batch_size")
    shard = found.positive("parallelism.data_parallel_shard_degree")
    replicate = found.positive("parallelism.data_parallel_replicate_degree", default=1)
    return local * shard * replicate if local and shard and replicate else None


def read_megatron(found: Reading, given: Target) -> RunConfig:
    """Megatron-LM's arguments, as a command line or as a mapping; its batches are in sequences."""
    sequence, sequences = found.positive("seq-length"), found.positive("global-batch-size")
    batch = sequence * sequences if sequence and sequences else given.batch_tokens
    steps = found.positive("train-iters") or _per_batch(found.positive("train-samples"), sequences)
    for what, value in {"batch_tokens": batch, "tokens": steps or given.tokens}.items():
        if value is None:
            found.missing(what, "its arguments do not say it; give it as an option")
    decay = found.positive("lr-decay-iters") or _per_batch(found.positive("lr-decay-samples"), sequences)
    muons = dict.fromkeys(("muon", "dist_muon", "adaptive_muon"), "muon")
    optimizer = found.word("optimizer", {"adam": "adamw", **muons}, "adam")
    warmup = _megatron_warmup(found, sequences, decay or steps)
    mup = found.flag("use-mup")
    width, base = found.positive("hidden-size"), found.positive("mup-base-hidden-size")
    tied = not found.flag("untie-embeddings-and-output-weights")
    by_width = base / width if mup and base and width and optimizer == "adamw" else 1.0
    return RunConfig(
        trainer="megatron",
        target=Target(
            tokens=batch * steps if batch and steps else None,
            batch_tokens=batch,
            width=width,
            depth=found.positive("num-layers"),
            sequence_length=sequence,
        ),
        steps=steps,
        optimizer=optimizer,
        embedding_optimizer="adamw" if optimizer else None,
        schedule=megatron_schedule(found, decay or steps, warmup),
        parametrization="mup" if mup else None,
        base_width=base if mup else None,
        rates=_megatron_groups(found, "lr", by_width, tied),
        floors=_megatron_groups(found, "min-lr", by_width, tied),
        weight_decay=present(hidden=found.number("weight-decay")),
        warmup_steps=warmup,
        decay_steps=decay,
        tied_embeddings=tied,
        unread=found.unread,
    )


def _megatron_groups(found: Reading, name: str, by_width: float, tied: bool) -> dict[str, float]:
    """A rate for each group: muP scales hidden and output matrices, --decoupled-lr both ends of the model."""
    everywhere = found.number(name)
    ends = found.number(f"decoupled-{name}") if found.positive("decoupled-lr") else None
    if everywhere is None:
        return present(embedding=ends, unembedding=ends)
    output = everywhere if tied else everywhere * by_width  # a tied matrix counts as an embedding
    return {
        "hidden": everywhere * by_width,
        "embedding": everywhere if ends is None else ends,
        "unembedding": output if ends is None else ends,
    }


def _megatron_warmup(found: Reading, sequences: float | None, decay: float | None) -> float | None:
    """Steps of warm-up, which Megatron takes as steps, as sequences or as a share of the decay."""
    steps, share = found.number("lr-warmup-iters"), found.number("lr-warmup-fraction")
    if share is not None and decay is not None:
        return share * decay
    return steps if steps is not None else _per_batch(found.number("lr-warmup-samples"), sequences)


def _per_batch(samples: float | None, sequences: float | None) -> float | None:
    return samples / sequences if samples is not None and sequences else None


def read_hf(found: Reading, given: Target) -> RunConfig:
    """TrainingArguments of transformers, perhaps with the sizes of the model's config beside them."""
    sequence = found.positive("max_length", "max_seq_length", "block_size") or given.sequence_length
    steps = found.positive("max_steps")
    if given.batch_tokens is None:
        found.missing("batch_tokens", "the number of devices is not in it; give --batch-tokens")
    if steps is None and given.tokens is None:
        found.missing("tokens", "max_steps is not set; give --tokens")
    batch = given.batch_tokens
    rate = found.positive("learning_rate", default=5e-5)
    optimizer = found.word("optim", dict.fromkeys(HF_ADAMW, "adamw"), "adamw_torch")
    known_steps = steps or (given.tokens / batch if given.tokens and batch else None)
    tied = found.values.get("tie_word_embeddings")
    warmup, floor = _hf_warmup(found, known_steps), hf_floor(found, rate)
    return RunConfig(
        trainer="hf",
        target=Target(
            tokens=batch * steps if batch and steps else None,
            batch_tokens=batch,
            width=found.positive("hidden_size"),
            depth=found.positive("num_hidden_layers"),
            sequence_length=sequence,
        ),
        steps=steps,
        optimizer=optimizer,
        embedding_optimizer=optimizer,
        schedule=hf_schedule(found, known_steps, warmup),
        rates=present(hidden=rate, embedding=rate, unembedding=rate),
        floors=present(hidden=floor, embedding=floor, unembedding=floor),
        weight_decay=present(hidden=found.number("weight_decay", default=0.0)),
        warmup_steps=warmup,
        tied_embeddings=tied if isinstance(tied, bool) else None,
        unread=found.unread,
    )


def _hf_warmup(found: Reading, steps: float | None) -> float | None:
    """Steps of warm-up; a share of the run is warmup_ratio, and since version 5 warmup_steps below 1."""
    warmup = found.number("warmup_steps", default=0.0) or found.number("warmup_ratio", default=0.0) or 0.0
    if warmup >= 1 or warmup == 0:
        return warmup
    return None if steps is None else warmup * steps


READERS: Mapping[str, Reader] = {
    "nanochat": read_nanochat,
    "torchtitan": read_torchtitan,
    "megatron": read_megatron,
    "hf": read_hf,
}
TRAINERS = (*READERS, "own")
# Keys that only one trainer's configuration has.
SIGNS: Mapping[str, tuple[str, ...]] = {
    "nanochat": ("matrix-lr", "aspect-ratio", "target-param-data-ratio", "total-batch-size"),
    "torchtitan": ("lr_scheduler.warmup_steps", "optimizer.name", "training.seq_len", "model.flavor"),
    "megatron": ("global-batch-size", "num-layers", "train-iters", "train-samples"),
    "hf": ("per_device_train_batch_size", "lr_scheduler_type", "gradient_accumulation_steps"),
}


def read_configuration(
    path: str | Path, trainer: str | None = None, keys: str | Path | None = None, given: Target | None = None
) -> RunConfig:
    """What a configuration says of its run.

    Args:
        path: a command line (any text with --options), or a TOML, JSON or YAML file.
        trainer: one of TRAINERS; found out from the keys unless given.
        keys: a YAML file that says which key of an own configuration is what; see `own_map`.
        given: sizes that are known already; they go before those of the configuration.

    Raises:
        ValueError: no such file, one that cannot be read, or keys of no known trainer.
    """
    if trainer is not None:
        require_known("trainer", trainer, TRAINERS)
    if keys is not None and trainer not in (None, "own"):
        raise ValueError(f"keys must be left out for trainer {trainer}, got {keys}")
    values = _load(Path(path))
    known = given or Target()
    whose = trainer or ("own" if keys is not None else _recognise(path, values))
    if whose == "own":
        config = read_own(path, values, None if keys is None else _load(Path(keys)))
    else:
        if whose == "megatron":
            values = {name.replace("_", "-"): value for name, value in values.items()}
        try:
            config = READERS[whose](Reading(str(path), values), known)
        except ValidationError as error:
            raise ValueError(invalid_field(error, str(path))) from None
    sizes = config.target.model_dump(exclude_none=True) | known.model_dump(exclude_none=True)
    return config.model_copy(update={"target": Target(**sizes)})


def _load(path: Path) -> dict[str, Any]:
    """The values of a file by dotted key; of a command line, by option without its dashes."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be UTF-8 text, got other bytes") from None
    try:
        if path.suffix == ".toml":
            return flatten(tomllib.loads(text))
        if path.suffix == ".json":
            return flatten(json.loads(text))
        if path.suffix in (".yaml", ".yml"):
            return flatten(yaml.safe_load(text))
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be readable as {path.suffix[1:]}: {reason}") from None
    return command_options(text, path)


def command_options(text: str, path: Path) -> dict[str, str]:
    """The --options of a command line or shell script; the last one of a name counts, as in argparse."""
    try:
        text = re.sub(r"\\\r?\n", " ", text)
        words = shlex.split(re.sub(r"\b\w+\+?=\(", " ( ", text), comments=True)  # ARGS=( of a shell array
    except ValueError as error:
        raise ValueError(f"{path} must be a command line that a shell can split: {error}") from None
    words = [word.strip("()") for word in words]
    found: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--") and len(word) > 2:
            name, sign, value = word[2:].partition("=")
            found[name] = value if sign else "true" if after.startswith("--") or not after else after
    return found


def _recognise(path: str | Path, values: Mapping[str, Any]) -> str:
    """The trainer most of whose own keys are there; "own" for a mapping with none of them."""
    named = {*values, *(name.replace("_", "-") for name in values)}
    signs = {trainer: len(named.intersection(keys)) for trainer, keys in SIGNS.items()}
    best = max(signs, key=lambda trainer: signs[trainer])
    if signs[best]:
        return best
    if Path(path).suffix in (".toml", ".json", ".yaml", ".yml"):
        return "own"
    got = ", ".join(list(values)[:5]) or "none"
    raise ValueError(f"{path} must hold options of one of {', '.join(READERS)}, got {got}")
