"""One Slurm for all tests below this folder: started when the first needs it, stopped after the last."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import FOLDER, Cluster, exclusive, why_not

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """The cluster; skips where there can be none. Several pytest processes share it: the last one stops it.

    A cluster that was up before is left up.
    """
    reason = why_not()
    if reason:
        pytest.skip(reason)
    FOLDER.mkdir(parents=True, exist_ok=True)
    cluster = Cluster()
    users = (FOLDER / ".users").open("a")
    fcntl.flock(users, fcntl.LOCK_SH)
    theirs = FOLDER / ".started-by-tests"
    if cluster.controller.pid() is None:
        theirs.touch()
    try:
        cluster.start()
    except (RuntimeError, TimeoutError, OSError) as error:
        cluster.stop()
        if shutil.which("slurmctld") is None:
            pytest.skip(f"Slurm cannot be installed: {error}")
        raise
    yield cluster
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if theirs.exists():
            cluster.stop()
            theirs.unlink()
    users.close()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster for one test alone, without a job, with both nodes up."""
    os.environ["SLURM_CONF"] = str(running_cluster.config)
    with exclusive(FOLDER / ".test"):
        yield running_cluster
        if running_cluster.controller.pid() is None:
            running_cluster.controller.start()
        running_cluster.revive()
        running_cluster.clear()


@pytest.fixture
def sweep() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `hyperp-sweep` with these words, as a user does."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "hyperp-sweep"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return call
