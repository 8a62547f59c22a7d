"""Run commands in new processes that are forked from a server which has imported torch already.

Importing torch takes longer than most of what tests do in these processes. Every command is also run by its
installed script, in a test of its command line.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

MAIN = {"hyperp-train": "hyperp.command", "hyperp-sweep": "hyperp.sweeps.cli.main"}

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        *MAIN.values(),
        "hyperp.sweeps.table.runs",
        "hyperp.training.train",
        "pytest",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
    ]
)


def run_command(
    name: str, *words: object, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command of this package; the result is like that of subprocess.run."""
    typed = [name, *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "out"), Path(folder, "err")]
        process = context.Process(target=_main, args=(typed, cwd or Path.cwd(), dict(os.environ), files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(typed, timeout)
        printed = [path.read_text() for path in files]
    return subprocess.CompletedProcess(typed, process.exitcode, *printed)


def _main(typed: list[str], cwd: Path, environment: Mapping[str, str], files: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = typed
    sys.modules["__main__"] = ModuleType("__main__")  # or every worker that it spawns imports pytest's
    for descriptor, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    importlib.import_module(MAIN[typed[0]]).main()
