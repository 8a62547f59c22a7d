"""Known columns under the names that other trainers and tools give them: guessed, told, never overriding.

A guess looks at a column's name alone and gives a standard column its values. Whoever reads a table says
which guesses were made, and a mapping that the user gives goes before them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperp.analysis.errors import argument
from hyperp.analysis.table.statuses import holds_states, status_columns
from hyperp.near_names import letters_of
from hyperp.run_table import CONTEXT, COVARIATES

if TYPE_CHECKING:  # a recommendation imports no pandas
    import pandas as pd

# Standard column -> other names, compared without case and separators. A single letter keeps its case.
# batch_size is in none: some trainers count sequences in it and some tokens.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "lr": (
        *("learning_rate", "max_lr", "lr_max", "max_learning_rate", "peak_lr", "lr_peak"),
        *("peak_learning_rate", "matrix_lr", "hidden_lr"),
    ),
    "loss": (
        *("val_loss", "valid_loss", "validation_loss", "eval_loss", "evaluation_loss", "test_loss"),
        *("held_out_loss", "final_loss", "final_val_loss", "final_eval_loss"),
    ),
    "seed": ("random_seed", "rng_seed", "manual_seed"),
    "width": (
        *("d_model", "hidden_size", "n_embd", "n_embed", "hidden", "hidden_dim", "model_dim", "dim_model"),
        *("embed_dim", "embedding_dim", "dim"),
    ),
    "depth": ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "layers"),
    "tokens": (
        *("D", "train_tokens", "training_tokens", "n_tokens", "num_tokens", "total_tokens", "token_budget"),
        *("num_train_tokens", "n_train_tokens", "total_train_tokens"),
    ),
    "batch_tokens": (
        *("tokens_per_batch", "tokens_per_step", "batch_size_tokens", "batch_size_in_tokens"),
        *("global_batch_tokens", "global_batch_size_tokens"),
    ),
    "optimizer": ("optim", "optimizer_name", "optim_name", "optimizer_type"),
    "schedule": ("lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler", "lr_decay_style"),
    "data": ("dataset", "dataset_name"),
    "parameters": (
        *("N", "n_params", "num_params", "n_parameters", "num_parameters", "params", "param_count"),
        *("parameter_count", "total_params", "model_params", "num_non_embedding_params"),
        *("non_embedding_params", "non_embedding_parameters"),
    ),
    "flops": ("C", "total_flops", "train_flops", "training_flops"),
}
TEXTS = ("optimizer", "schedule", "data")
ALWAYS = ("lr", "loss", "seed", *(name for name in COVARIATES if name in SPELLINGS), *TEXTS)
# A slash is how loggers group what they measure, such as train/lr, the rate at the last step; a path that
# begins with one of these words is of the configuration.
SETTINGS = ("config", "params", "hparams", "args")
RESULTS = ("summary", "metrics")
TRAINING = ("train", "training")


@dataclass(frozen=True)
class Guesses:
    """Standard columns, each with the column of the table that is read as it, and what a reader is told."""

    columns: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def read_lines(guesses: Mapping[str, str]) -> list[str]:
    """What a reader is told about each guess, such as "read lr from config.optim.lr"."""
    return [f"read {name} from {column}" for name, column in guesses.items()]


def guess_columns(
    frame: "pd.DataFrame",
    given: Mapping[str, str],
    asked: Collection[str] = (),
    sizes: Collection[str] = (),
    wanted: Sequence[str] = ALWAYS,
) -> Guesses:
    """Guess the columns of the table that hold standard columns which it lacks.

    Args:
        frame: the rows as they were read.
        given: the mapping of the user; what it names is not guessed.
        asked: columns that the user names elsewhere, which are not read under another name.
        sizes: likewise, and no size is guessed whose value these tell already, as N may tell the width.
        wanted: the standard columns to look for; those in `sizes` are looked for too.

    Raises:
        ValueError: two columns with different values may be the same standard column.
    """
    columns = list(map(str, frame.columns))
    found: dict[str, str] = {}
    remarks: list[str] = []
    free = [c for c in columns if c not in (*SPELLINGS, *given.values(), *asked, *sizes)]
    for name in dict.fromkeys((*wanted, *(n for n in sizes if n in SPELLINGS))):
        if name in columns or name in given:
            continue
        candidates = [c for c in free if is_spelling(c, name) and _can_hold(frame[c], name)]
        if not candidates or (name in COVARIATES and _told_by(frame, candidates[0], sizes)):
            continue
        _refuse_two(frame, name, candidates)
        found[name] = candidates[0]
    if "status" not in given and "status" not in columns:
        states = [c for c in status_columns(free) if holds_states(frame[c])]
        _refuse_two(frame, "status", states)
        found |= {"status": states[0]} if states else {}
    if "batch_tokens" not in (*columns, *given, *found):
        remarks += _batch_remarks(frame, free)
    return Guesses(found, tuple(remarks))


def is_spelling(column: str, name: str) -> bool:
    """Whether a column of this name holds the standard column `name`, as far as names can tell."""
    path = column.split("/") if "/" in column else column.split(".")
    last, before = path[-1], [part.strip().lower() for part in path[:-1]]
    spelled = {letters_of(one) for one in (name, *SPELLINGS[name]) if len(one) > 1}
    if name == "loss":
        if before and before[0] in RESULTS:
            before = before[1:]
        if any(part in TRAINING for part in before):
            return False
        return letters_of(last) in spelled or bool(before and letters_of(before[-1] + last) in spelled)
    logged = "/" in column and before[0] not in SETTINGS
    if logged or (before and before[0] in RESULTS):
        return False
    return letters_of(last) in spelled or (len(last) == 1 and last in SPELLINGS[name])


def _can_hold(column: "pd.Series", name: str) -> bool:
    """Whether the column holds numbers, or for a name of TEXTS a text in every row."""
    import pandas as pd

    if name in TEXTS:
        return bool(column.notna().all()) and not pd.api.types.is_numeric_dtype(column)
    return bool(pd.to_numeric(column, errors="coerce").notna().any())


def _told_by(frame: "pd.DataFrame", candidate: str, sizes: Collection[str]) -> bool:
    """Whether rows that agree in the sizes asked for agree in this one too, so that it tells nothing."""
    known = [c for c in sizes if c in frame.columns]
    if not known:
        return False
    return bool(frame.groupby(known, dropna=False)[candidate].nunique(dropna=False).max() <= 1)


def _refuse_two(frame: "pd.DataFrame", name: str, candidates: Sequence[str]) -> None:
    different = [c for c in candidates[1:] if not frame[c].equals(frame[candidates[0]])]
    if different:
        two = [candidates[0], different[0]]
        ways = " or ".join(argument("mapping", {name: column}) for column in two)
        raise ValueError(f"column {name} may be {two[0]} or {two[1]}, whose values differ; say {ways}")


def _batch_remarks(frame: "pd.DataFrame", free: Sequence[str]) -> list[str]:
    sizes = {"batchsize", "globalbatchsize", "bs", "trainbatchsize"}
    named = [c for c in free if letters_of(c.split(".")[-1]) in sizes and frame[c].nunique() > 1]
    return [
        f"column {column} is not read as batch_tokens, since it may count sequences; "
        f"{argument('mapping', {'batch_tokens': f'{column}*TOKENS_PER_SEQUENCE'})} reads it"
        for column in named[:1]
    ]


def unread_columns(frame: "pd.DataFrame", mapping: Mapping[str, str]) -> list[str]:
    """A remark for each varying column that is not read because a known name is spelled differently."""
    remarks = []
    for known in ("seed", "base_lr", *COVARIATES, *CONTEXT):
        for column in map(str, frame.columns):
            same = letters_of(column) == letters_of(known) and column not in mapping.values()
            if known not in frame.columns and same and frame[column].nunique(dropna=False) > 1:
                remarks.append(
                    f"column {column} is not read as {known}; {argument('mapping', {known: column})} reads it"
                )
    return remarks
