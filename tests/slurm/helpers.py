"""What the tests of Slurm share: words of tiny runs, and ways to look at a sweep from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster import Cluster, output, wait_for

from hyperp import record
from hyperp.record import Record

HYPERP_SWEEP = Path(sys.executable).with_name("hyperp-sweep")
TINY = [
    "scale.width=16",
    "scale.depth=1",
    "scale.batch_tokens=256",
    "model.context=64",
    "model.head_size=8",
    "data.held_out_tokens=1024",
    "runtime.log_every=4",
    "runtime.checkpoint_every=8",
]
SHORT = "scale.tokens=8192"
SLURM = ["launcher=slurm", "launcher.time=10m"]
VOLATILE = ("seconds", "tokens_per_second", "resumed", "config", "environment")


def facts(one: Record) -> dict[str, Any]:
    """What must be the same, to the bit, however often a run was interrupted."""
    kept = {key: value for key, value in vars(one).items() if key not in VOLATILE}
    return kept | {"corpus": one.environment.get("corpus_sha256")}


def records(root: Path) -> dict[str, Record]:
    """Every record below a root, by run id."""
    found = {path.parent.name: record.load(path.parent) for path in root.glob("*/record.json")}
    return {run_id: one for run_id, one in found.items() if one is not None}


def report(root: Path, *options: str) -> dict[str, Any]:
    """What `hyperp-sweep status --json` says, in a process of its own."""
    command = [HYPERP_SWEEP, "status", root, "--json", *options]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def settled(root: Path, seconds: float = 150) -> None:
    """Wait until none of a sweep's runs is queued or running."""
    wait_for(lambda: not set(report(root)["counts"]) & {"queued", "running"}, f"{root} to settle", seconds)


def jobs_state() -> list[str]:
    """`id|state|restarts` of every job that is not over."""
    return output("squeue", "-h", "-r", "-O", "JobArrayID:|,State:|,RestartCnt:|").split()


def jobs_of(job: str | None) -> list[str]:
    """`id|state` of every task of an array, from the accounting."""
    return output("sacct", "-n", "-P", "-X", "-j", str(job), "-o", "JobID,State").splitlines()


def beat(run_dir: Path) -> dict[str, Any]:
    """The heartbeat of a run; step -1 without one."""
    try:
        return json.loads((run_dir / "heartbeat.json").read_text())
    except (OSError, ValueError):
        return {"step": -1, "job": None}


def wait_for_step(run_dir: Path, step: int, seconds: float = 90) -> dict[str, Any]:
    """Wait until the heartbeat of a live process is past `step`, and return it."""

    def past() -> bool:
        now = beat(run_dir)
        return now["step"] > step and Path(f"/proc/{now['process']}").exists()

    wait_for(past, f"step {step} of {run_dir.name}", seconds)
    return beat(run_dir)


def kill_node(cluster: Cluster, name: str) -> None:
    """What a power failure does: the daemon of a node and everything that runs on it, at once."""
    doomed = {pid for pid in processes() if f"SLURMD_NODENAME={name}" in environment(pid)}
    for pid in list(doomed):  # and the step daemons that they are children of
        parent = parent_of(pid)
        while parent > 1 and Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd":
            doomed.add(parent)
            parent = parent_of(parent)
    daemon = cluster.nodes[name].pid()
    for pid in (daemon, *sorted(doomed)):
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes() -> list[int]:
    """All of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def environment(pid: int) -> list[str]:
    """The variables that a process began with."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
