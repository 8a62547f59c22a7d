"""hyperp-law in this process, and the tables that its tests read."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperp.analysis.cli.main import app
from tests.paths import PUBLIC_SWEEPS


def run(*words: object):
    """Run the command; the result has its exit code, standard output and standard error."""
    return CliRunner().invoke(app, [str(word) for word in words])


def says(line: str, text: str) -> bool:
    """Whether the line holds the text, in which " ... " stands for any words."""
    return re.search(".*".join(re.escape(part) for part in text.split(" ... ")), line) is not None


def one_line(result, code: int, text: str) -> None:
    """Assert the exit code, and an error of one line that `says` the text, with only runs to do after it."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert says(lines[0], text), lines[0]
    assert len(lines) == 1 or lines[1].startswith("run next:")
    assert result.stdout == ""


def shared_table(name: str) -> Path:
    """A table of public runs; skips the test without the folder `shared` beside the repository."""
    path = PUBLIC_SWEEPS / name
    if not path.is_file():
        pytest.skip("the folder shared/data does not lie beside the repository")
    return path
