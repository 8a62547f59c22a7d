"""One run on several processes and nodes of a real Slurm: they meet, one writes, and all stop together."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import NODES
from helpers import SLURM, TINY, records, report, settled, wait_for_step

pytestmark = pytest.mark.slurm
HOSTS = Path("/etc/hosts")
SEVERAL = [
    *TINY,
    *SLURM,
    "launcher.nodes=2",
    "launcher.processes=2",
    "runtime.parallel=fsdp",
    "runtime.timeout=60",
]


@pytest.fixture(autouse=True)
def names_of_nodes(cluster) -> Iterator[None]:
    """The nodes of this cluster are all this machine, but only Slurm knows them by name."""
    before = HOSTS.read_text()
    HOSTS.write_text(f"{before}\n127.0.0.1 {' '.join(NODES)}\n")
    yield
    HOSTS.write_text(before)


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_four_processes_on_two_nodes_do_one_run(cluster, sweep, tmp_path):
    words = ["scale.tokens=8192"]
    many, one = tmp_path / "many", tmp_path / "one"
    done = sweep("submit", *SEVERAL, *words, f"runtime.root={many}")
    assert done.returncode == 0, done.stderr
    assert sweep("run", *TINY, *words, f"runtime.root={one}").returncode == 0
    assert settled(cluster, many) == {"finished": 1}, sweep("logs", many, *records(many)).stdout
    ((run_id, ended),) = records(many).items()
    assert ended.environment["processes"] == "4"
    assert ended.loss == pytest.approx(records(one)[run_id].loss, rel=1e-5)
    assert losses(many / run_id) == pytest.approx(losses(one / run_id), rel=1e-5)
    assert len(list((many / run_id).glob("output*.log"))) == 4


def test_a_warning_to_one_process_stops_all_and_the_job_goes_on(cluster, sweep, tmp_path):
    words = ["scale.tokens=65536", "runtime.checkpoint_every=0"]
    assert sweep("submit", *SEVERAL, *words, f"runtime.root={tmp_path}").returncode == 0
    (run_id,) = [run["run_id"] for run in report(tmp_path, "--all")["runs"]]
    os.kill(wait_for_step(tmp_path / run_id, 8).process, signal.SIGUSR2)
    settled(cluster, tmp_path)
    ended = records(tmp_path)[run_id]
    assert (ended.status, ended.resumed) == ("finished", 1), ended.reason
    assert ended.environment["slurm_restart_count"] == "1"
    assert not (tmp_path / run_id / "heartbeat.json").exists()
    lines = (tmp_path / run_id / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(4, 257, 4))
