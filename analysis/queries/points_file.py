"""The file of runs to do next: YAML in the form of a sweep's `points`, and the command that runs it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hyperp.analysis.files import write_text
from hyperp.analysis.vocabulary import option_overrides, unknown_options
from hyperp.run_table import CONTEXT, COVARIATES


def save_points(points: Sequence[Mapping[str, Any]], path: Path, why: str) -> bool:
    """Write the points; False, and nothing written, where none names a rate."""
    contexts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["lr"]:
            contexts.setdefault(tuple(str(point.get(name, "")) for name in CONTEXT), []).append(point)
    if not contexts:
        return False
    lines = [
        f"# {' '.join(why.split())}",
        f"# Run with: {run_command(path)}",
        f"# {OVERRIDES_NOTE}",
        "blocks:",
    ]
    for index, members in enumerate(contexts.values()):
        known = {name: str(members[0][name]) for name in CONTEXT if name in members[0]}
        lines += [f"  {_block(path)}{index or ''}: # " + ", ".join(f"{n} {v}" for n, v in known.items())]
        if words := option_overrides(known):
            lines += [f"    overrides: [{', '.join(words)}]"]
        if unknown := unknown_options(known):
            lines += [
                f"    # {', '.join(unknown)}: no option of hyperp-train, run these points in your own way"
            ]
        lines += ["    points:", *(row for point in members for row in _rows(point))]
    write_text("\n".join(lines) + "\n", path)
    return True


NOT_SIZES = (*CONTEXT, "lr", "factor", "seeds")


def _rows(point: Mapping[str, Any]) -> list[str]:
    """One row a run; `factor` is lr/base_lr, `seeds` how many."""
    sizes = [f"{_key(n)}: {_number(v)}" for n, v in point.items() if n not in NOT_SIZES]
    factor = point.get("factor") or 1.0
    rows = []
    for rate in point["lr"]:
        base = f"base_lr: {_number(float(f'{rate / factor:.12g}'))}"
        for seed in range(point.get("seeds", 1)):
            last = [f"seed: {seed}"] if "seeds" in point else []
            rows.append("      - {" + ", ".join([*sizes, base, *last]) + "}")
    return rows


def _key(name: str) -> str:
    return f"scale.{name}" if name in COVARIATES else name


def _number(value: float) -> str:
    """A number that YAML 1.1 reads as one: 1e-05 would be text."""
    if isinstance(value, int):
        return str(value)
    text = repr(value)
    mantissa, sign, exponent = text.partition("e")
    return text if not sign or "." in mantissa else f"{mantissa}.0e{exponent}"


def _block(path: Path) -> str:
    name = "".join(c if c.isalnum() or c == "_" else "_" for c in path.stem)
    plain = name[:1].isalpha() and isinstance(yaml.safe_load(name), str)
    return name if plain else f"next_{name}"


# Of two words for one key Hydra takes the last, but of hydra.searchpath the first.
OVERRIDES_NOTE = (
    "OVERRIDES: the overrides of the sweep, without those of scale, base_lr, seed, optim, parametrization "
    "and schedule; if they set hydra.searchpath, append its folders to this one: [THIS,THOSE]"
)
GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./:-]*")
LITERALS = ("true", "false", "null", "nan", "inf")  # to Hydra's grammar, unless quoted


def run_command(path: Path) -> str:
    """The command that runs the points of the file with the sweep's own overrides; see `OVERRIDES_NOTE`."""
    where = path.resolve().with_suffix("")
    # The group is the nearest folder whose name Hydra takes for one, the option what lies below it.
    group = next((folder for folder in where.parents if GROUP.fullmatch(folder.name)), where.parent)
    search = f"hydra.searchpath=[{_quoted(f'file://{group.parent}')}]"
    option = f"+{group.name}@sweep={_quoted(where.relative_to(group).as_posix())}"
    return f"hyperp-sweep run {shlex.quote(search)} OVERRIDES sweep=none {shlex.quote(option)}"


def _quoted(text: str) -> str:
    """The text as Hydra reads it back."""
    if PLAIN.fullmatch(text) and text.lower() not in LITERALS:
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
