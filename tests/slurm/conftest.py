"""The tests below this folder use a Slurm that is up; `make test-slurm` starts one and stops it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import FOLDER, Cluster, exclusive, succeeds, wait_for

BIN = Path(sys.executable).parent
HOW = "`make test-slurm` starts one, runs these tests and stops it (it needs root on Debian)"


@pytest.fixture(scope="session")
def running_cluster() -> Cluster:
    """The cluster; skips where none is up: a test installs no packages and starts no daemons by itself."""
    cluster = Cluster()
    if cluster.controller.pid() is None:
        pytest.skip(f"no Slurm is up: {HOW}")
    os.environ["SLURM_CONF"] = str(cluster.config)
    return cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster for one test alone, without a job, with both nodes up."""
    with exclusive(FOLDER / ".test"):
        tidy(running_cluster)
        yield running_cluster
        tidy(running_cluster)


def tidy(cluster: Cluster) -> None:
    """Undo what a test did to the cluster."""
    cluster.controller.start()
    wait_for(lambda: succeeds("scontrol", "ping"), "the controller")
    cluster.revive()
    cluster.clear()


@pytest.fixture
def sweep() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `hyperp-sweep` with these words, as a user does."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "hyperp-sweep"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return call
