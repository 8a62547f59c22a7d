"""What the commands of `hyperp-sweep` share: exit codes, warnings, signals, and the words that they take."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer

WATCH_SECONDS = 5.0

Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="Hydra words that compose the plan, such as +experiment=demo seed=0,1", show_default=False
    ),
]
Root = Annotated[Path, typer.Argument(help="Folder of the sweep: its runtime.root", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]


def warn(text: str) -> None:
    """A line on standard error."""
    print(f"hyperp-sweep: warning: {text}", file=sys.stderr)


def found(number: Mapping[str, int]) -> str:
    """`3 finished, 1 diverged`."""
    return ", ".join(f"{n} {status}" for status, n in number.items())


def interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    """A signal handler that makes of another signal what Ctrl-C is."""
    raise KeyboardInterrupt
