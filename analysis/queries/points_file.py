"""Runs to do next: points, the YAML file that a sweep reads them from, and the command that runs it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hyperp.analysis.files import write_text
from hyperp.analysis.vocabulary import option_overrides, unknown_options
from hyperp.run_table import CONTEXT, COVARIATES

# If a key is overridden twice, Hydra takes the last value, but of hydra.searchpath the first.
OVERRIDES_NOTE = (
    "OVERRIDES: what your sweep was run with, such as +experiment=demo, but without scale, base_lr, seed, "
    "optim, parametrization and schedule, which the file sets; if your sweep sets hydra.searchpath, append "
    "its folders to the one shown: hydra.searchpath=[SHOWN,YOURS]"
)
NOT_SIZES = (*CONTEXT, "lr", "seeds", "factor")
GROUP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
UNQUOTED = re.compile(r"[A-Za-z_/][A-Za-z0-9_./:-]*")
LITERALS = ("true", "false", "null", "nan", "inf")  # Hydra reads these as values unless they are quoted


def sweep_point(
    context: Mapping[str, str],
    sizes: Mapping[str, float],
    rates: Sequence[float],
    factor: float | None = None,
    seeds: int | None = None,
) -> dict[str, Any]:
    """Runs at one scale: `factor` is lr/base_lr, `seeds` how many of each rate."""
    point: dict[str, Any] = {**{n: v for n, v in context.items() if v}, **sizes, "lr": list(rates)}
    if seeds is not None:
        point["seeds"] = seeds
    return point if factor is None else {**point, "factor": factor}


def save_points(points: Sequence[Mapping[str, Any]], path: Path, why: str) -> bool:
    """Write the points; write nothing and return False if none names a rate."""
    contexts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["lr"]:
            contexts.setdefault(tuple(str(point.get(name, "")) for name in CONTEXT), []).append(point)
    if not contexts:
        return False
    lines = [f"# {' '.join(why.split())}", f"# Run with: {run_command(path)}", f"# {OVERRIDES_NOTE}"]
    lines += ["blocks:"]
    for index, members in enumerate(contexts.values()):
        known = {name: str(members[0][name]) for name in CONTEXT if name in members[0]}
        lines += [f"  {_block_name(path)}{index or ''}: # " + ", ".join(f"{n} {v}" for n, v in known.items())]
        if overrides := option_overrides(known):
            lines += [f"    overrides: [{', '.join(overrides)}]"]
        if unknown := unknown_options(known):
            lines += [f"    # not in hyperp-train: {', '.join(unknown)}; run these with your own trainer"]
        lines += ["    points:", *(row for point in members for row in _yaml_rows(point))]
    write_text("\n".join(lines) + "\n", path)
    return True


def save_own_points(points: Sequence[Mapping[str, Any]], path: Path, why: str) -> bool:
    """Write points in the columns of their own table, a row for each run; return False if there are none."""
    rows = [
        {name: value[k] if isinstance(value, list) else value for name, value in point.items()}
        for point in points
        for k in range(max((len(v) for v in point.values() if isinstance(v, list)), default=0))
    ]
    if rows:
        lines = [f"# {' '.join(why.split())}", "# Runs for your own trainer, in the columns of your table"]
        lines += ["points:", *(f"  - {_yaml_row(row)}" for row in rows)]
        write_text("\n".join(lines) + "\n", path)
    return bool(rows)


def save_for_user(
    points: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]] | None, path: Path, why: str
) -> str | None:
    """Write the points, in the columns of the user's own table if `own` has them so.

    Returns:
        a line that says what was written and how to run it; None if there was nothing to write.
    """
    if own is not None:
        line = f"wrote {path}, runs for your own trainer in the columns of your table"
        return line if save_own_points(own, path, why) else None
    return (
        f"wrote {path}; run it with: {run_command(path)}\n{OVERRIDES_NOTE}"
        if save_points(points, path, why)
        else None
    )


def run_command(path: Path) -> str:
    """The command that runs the points of the file with the sweep's own overrides; see `OVERRIDES_NOTE`."""
    where = path.resolve().with_suffix("")
    # Hydra takes the nearest folder with a valid name as the group, and the path below it as the option.
    group = next((folder for folder in where.parents if GROUP_NAME.fullmatch(folder.name)), where.parent)
    search = f"hydra.searchpath=[{_hydra_quoted(f'file://{group.parent}')}]"
    option = f"+{group.name}@sweep={_hydra_quoted(where.relative_to(group).as_posix())}"
    return f"hyperp-sweep run {shlex.quote(search)} OVERRIDES sweep=none {shlex.quote(option)}"


def _yaml_rows(point: Mapping[str, Any]) -> list[str]:
    """One row for each rate and seed."""
    sizes = [f"{_config_key(n)}: {_yaml_number(v)}" for n, v in point.items() if n not in NOT_SIZES]
    factor = point.get("factor") or 1.0
    rows = []
    for rate in point["lr"]:
        base = f"base_lr: {_yaml_number(float(f'{rate / factor:.12g}'))}"
        for seed in range(point.get("seeds", 1)):
            last = [f"seed: {seed}"] if "seeds" in point else []
            rows.append("      - {" + ", ".join([*sizes, base, *last]) + "}")
    return rows


def _yaml_row(row: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(row), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _config_key(name: str) -> str:
    return f"scale.{name}" if name in COVARIATES else name


def _yaml_number(value: float) -> str:
    """Text that YAML 1.1 reads as a number, which it does not with 1e-05."""
    if isinstance(value, int):
        return str(value)
    text = repr(value)
    mantissa, sign, exponent = text.partition("e")
    return text if not sign or "." in mantissa else f"{mantissa}.0e{exponent}"


def _block_name(path: Path) -> str:
    name = "".join(c if c.isalnum() or c == "_" else "_" for c in path.stem)
    plain = name[:1].isalpha() and isinstance(yaml.safe_load(name), str)
    return name if plain else f"next_{name}"


def _hydra_quoted(text: str) -> str:
    """The text, quoted if Hydra's grammar would otherwise change it."""
    if UNQUOTED.fullmatch(text) and text.lower() not in LITERALS:
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
