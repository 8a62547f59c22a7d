"""The file of runs to do next: YAML in the form of a sweep's `points`, and the command that runs it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperp.analysis.law import save_json
from hyperp.analysis.vocabulary import CONTEXT, COVARIATES, option_words


def save_points(points: Sequence[Mapping[str, Any]], path: Path, why: str) -> bool:
    """Write the points; False, and nothing written, where none names a rate."""
    contexts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["lr"]:
            contexts.setdefault(tuple(str(point.get(name, "")) for name in CONTEXT), []).append(point)
    if not contexts:
        return False
    lines = [f"# {' '.join(why.split())}", f"# Run with: {run_command(path)}", "blocks:"]
    for index, members in enumerate(contexts.values()):
        known = {name: str(members[0][name]) for name in CONTEXT if name in members[0]}
        lines += [f"  {_block(path)}{index or ''}: # " + ", ".join(f"{n} {v}" for n, v in known.items())]
        if words := option_words(known):
            lines += [f"    overrides: [{', '.join(words)}]"]
        lines += ["    points:", *(row for point in members for row in _rows(point))]
    save_json("\n".join(lines) + "\n", path)
    return True


NOT_SIZES = (*CONTEXT, "lr", "factor", "seeds")


def _rows(point: Mapping[str, Any]) -> list[str]:
    """One row a run; `factor` is lr/base_lr, `seeds` how many."""
    sizes = [f"{_key(n)}: {_number(v)}" for n, v in point.items() if n not in NOT_SIZES]
    factor = point.get("factor") or 1.0
    rows = []
    for rate in point["lr"]:
        base = f"base_lr: {_number(float(f'{rate / factor:.6g}'))}"
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
    return name if name[:1].isalpha() else f"next_{name}"


def run_command(path: Path) -> str:
    """What runs the points of the file with the words that the sweep itself was run with."""
    where = path.resolve()
    search = shlex.quote(f"hydra.searchpath=[file://{where.parent.parent}]")
    return f"hyperp-sweep run WORDS sweep=none {search} +{where.parent.name}@sweep={where.stem}"
