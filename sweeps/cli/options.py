"""Arguments and options that several commands of `hyperp-sweep` take."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Hydra overrides that compose the plan, such as +experiment=demo seed=0,1", show_default=False
    ),
]
Root = Annotated[Path, typer.Argument(help="Folder of the sweep: its runtime.root", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]
