"""How every command ends: exit codes, and errors of one line on standard error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer

ANSWERED = 0
FAILED = 1  # a run failed, a check did not hold
BAD_INPUT = 2
REFUSED = 3  # the data cannot tell
STOPPED = 130  # by Ctrl-C

# Lines of Hydra and OmegaConf about their own types and search path, and advice that is wrong for typed keys.
NOISE = (
    "reference_type=",
    "object_type=",
    "To append to your config use",
    "Config search path:",
    "provider=",
)


def one_line(error: BaseException) -> str:
    """The text of an error and of its cause, in one line, without Hydra's notes on its own types."""
    text = f"{error}\n{error.__cause__}" if error.__cause__ else str(error)
    lines = [line.strip() for line in text.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(NOISE)) or type(error).__name__
    return text.replace("str is not a ListConfig, list or tuple.", "a list is wanted, such as [a,b].")


def print_error(program: str, text: str) -> None:
    """Print `program: error: text` to standard error."""
    print(f"{program}: error: {text}", file=sys.stderr)


@contextmanager
def closed_pipe_is_no_error() -> Iterator[None]:
    """Flush standard output at the end; a reader that has seen enough, such as head, is not a failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_app(app: "typer.Typer", program: str, failures: tuple[type[Exception], ...] = ()) -> NoReturn:
    """Run a Typer application and exit: bad input, a wrong option too, is one line and exit code 2.

    A ValueError or OSError is bad input, one of `failures` exits with 1, Ctrl-C exits with 130. Anything else
    is a fault of the program and keeps its traceback.
    """
    import typer
    from yaml import YAMLError

    code = ANSWERED
    try:
        with closed_pipe_is_no_error():
            command = typer.main.get_command(app)
            for option in command.params:  # --help says once how to install it
                if option.name in ("install_completion", "show_completion"):
                    setattr(option, "hidden", True)  # noqa: B010 - of options, which Typer types as parameters
            code = command(sys.argv[1:] or ["--help"], prog_name=program, standalone_mode=False) or ANSWERED
    except (typer.Abort, KeyboardInterrupt):
        code = STOPPED
    except (ValueError, OSError, YAMLError) as error:
        print_error(program, one_line(error))
        code = BAD_INPUT
    except Exception as error:
        if describe := getattr(error, "format_message", None):  # a wrong option: click's or Typer's own class
            print_error(program, " ".join(describe().split()))
            code = BAD_INPUT
        elif isinstance(error, failures):
            print_error(program, one_line(error))
            code = FAILED
        else:
            raise
    sys.exit(code)
