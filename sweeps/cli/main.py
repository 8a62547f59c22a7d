"""`hyperp-sweep`: plan many runs, do them, see what became of them, collect them into a table."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from yaml import YAMLError

from hyperp.config import one_line
from hyperp.sweeps.cli import follow as cli_after
from hyperp.sweeps.cli import start as cli_start
from hyperp.sweeps.console import BAD_INPUT, FAILED, STOPPED

HELP = """Train a grid of runs and account for every one of them.

\b
  hyperp-sweep plan +experiment=demo                    what would be run; starts nothing
  hyperp-sweep run +experiment=demo                     run what is missing, several at a time
  hyperp-sweep run +experiment=demo launcher.workers=1  any Hydra words: key=value, group=option, key=a,b
  hyperp-sweep submit +experiment=demo                  the same in the background; returns at once
  hyperp-sweep submit +experiment=demo launcher=slurm   hand what is missing to Slurm; returns at once
  hyperp-sweep status runs/demo                         what became of each, and why; --watch
  hyperp-sweep cancel runs/demo                         stop what was submitted; what is saved is kept
  hyperp-sweep logs runs/demo RUN_ID                    what a run printed
  hyperp-sweep collect runs/demo -o runs/demo/runs.parquet
  hyperp-sweep auto +experiment=demo --until interval=30%   run, fit, run what is asked for, until it is known

A run's id is a hash of its configuration, so the same command run again does only what is missing or failed.
A plan is the `sweep` section of the configuration; conf/sweep/example.yaml shows what it can say.
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    cli_start.plan,
    cli_start.run,
    cli_start.submit,
    cli_after.status,
    cli_after.cancel,
    cli_after.logs,
    cli_after.collect,
    cli_start.auto,
)
for command in COMMANDS:
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"hyperp-sweep {version('hyperp-scaling')}")
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point. Bad input, a wrong option too, is one line on standard error and exit code 2."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except typer.Abort:  # Ctrl-C before there is anything to stop
        code = STOPPED
    except (ValueError, OSError, YAMLError) as error:
        code = _refuse(one_line(error), BAD_INPUT)
    except Exception as error:
        if wrong := getattr(error, "format_message", None):  # an option; Typer's class depends on its version
            code = _refuse(" ".join(wrong().split()), BAD_INPUT)
        elif isinstance(error, RuntimeError):
            code = _refuse(str(error), FAILED)
        else:
            raise
    sys.exit(code)


def _refuse(text: str, code: int) -> int:
    print(f"hyperp-sweep: error: {text}", file=sys.stderr)
    return code
