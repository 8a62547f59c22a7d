"""hyperp-law in this process, and the tables that its tests read."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperp.analysis.cli.main import app
from tests.paths import PUBLIC_SWEEPS


def run(*words: object):
    """Exit code, standard output and standard error of the command."""
    return CliRunner().invoke(app, [str(word) for word in words])


def one_line(result, code: int, text: str) -> None:
    """Assert one line of error, and after it at most what to run next."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert text in lines[0]
    assert len(lines) == 1 or lines[1].startswith("run next:")
    assert result.stdout == ""


def shared_table(name: str) -> Path:
    """A table of public runs; skips without the folder `shared` beside the repository."""
    path = PUBLIC_SWEEPS / name
    if not path.is_file():
        pytest.skip("the folder shared/data does not lie beside the repository")
    return path
