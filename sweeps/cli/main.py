"""`hyperp-sweep`: plan many runs, do them, see what became of them, collect them into a table."""

from typing import Annotated

import typer

from hyperp import __version__
from hyperp.sweeps.cli.follow import cancel, collect, logs, status
from hyperp.sweeps.cli.start import auto, plan, run, submit
from hyperp.terminal import run_app

HELP = """Train a grid of runs and account for every one of them.

\b
  hyperp-sweep plan +experiment=demo                    what would be run; starts nothing
  hyperp-sweep run +experiment=demo                     train what is missing, several at a time
  hyperp-sweep run +experiment=demo launcher.workers=1  any Hydra override: key=value, group=option, key=a,b
  hyperp-sweep submit +experiment=demo                  the same in the background; returns at once
  hyperp-sweep submit +experiment=demo launcher=slurm   hand what is missing to Slurm; returns at once
  hyperp-sweep status runs/demo                         what became of each run, and why; --watch
  hyperp-sweep cancel runs/demo                         stop what was submitted; what is saved is kept
  hyperp-sweep logs runs/demo RUN_ID                    what a run printed
  hyperp-sweep collect runs/demo -o runs/demo/runs.parquet
  hyperp-sweep auto +experiment=demo --until interval=30%   run, fit, run what the law asks for

A run's id is a hash of its configuration, so the same command does only what is missing or failed. A plan is
the `sweep` section of the configuration; conf/sweep/example.yaml shows everything it can say. From Python:
`from hyperp.sweeps import make_plan, run, submit, status, cancel, collect`.

`hyperp-sweep --install-completion` completes commands and options in your shell.
"""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (plan, run, submit, status, cancel, logs, collect, auto):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"hyperp-sweep {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of hyperp-sweep; see `hyperp.terminal.run_app` for how it ends."""
    run_app(app, "hyperp-sweep", failures=(RuntimeError,))
