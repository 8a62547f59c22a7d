"""The README's blocks marked `sh` and its first Python example run as they stand, in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.paths import ROOT

TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; `bash` marks those that need a GPU, Slurm or many minutes."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder that holds what a fresh clone has, as far as the README's commands read it."""
    made = tmp_path_factory.mktemp("readme")
    (made / "reports" / "demo").mkdir(parents=True)
    shutil.copy(ROOT / "reports" / "demo" / "runs.csv", made / "reports" / "demo")
    for page in (
        "README.md",
        "conf/README.md",
        "hyperp/optim/README.md",
        "sweeps/README.md",
        "analysis/README.md",
    ):
        shutil.copy(ROOT / page, made / page.replace("/", "-"))
    return made


def run(command: list[str], folder: Path) -> str:
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}  # more are slower at this size
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.split("\n")[0][:30])
def test_the_shell_blocks_run_and_print_what_the_readme_shows(folder, block):
    for line in block.splitlines():
        printed = run(["bash", "-euc", line], folder)
        shown = re.search(rf"^\$ {re.escape(line)}\n(.*?)(?=^\$|^```)", TEXT, flags=re.MULTILINE | re.DOTALL)
        if shown:
            lines = [one.split() for one in printed.splitlines()]
            expected = [
                one for one in shown[1].splitlines() if one.strip() not in ("", "...")
            ]  # "...": and more
            missing = [one for one in expected if one.split() not in lines]
            assert not missing, f"{line} does not print {missing}"


def test_the_python_example_runs(folder):
    run([sys.executable, "-c", blocks("python")[0]], folder)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
