"""What the Slurm tests share: overrides of tiny runs, and ways to look at a sweep from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Cluster, output, wait_for

from hyperp.rundir import record
from hyperp.rundir.record import Record
from tests import tiny

HYPERP_SWEEP = Path(sys.executable).with_name("hyperp-sweep")
TINY = [
    *tiny.TINY,
    "runtime.log_every=4",
    "runtime.monitor_every=0",
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


def settled(cluster: Cluster, root: Path) -> dict[str, int]:
    """Wait until Slurm has no job; the counts of the sweep, of whose runs none may be under way then."""
    cluster.settle()
    counts = report(root)["counts"]
    assert not set(counts) & {"queued", "running"}, counts
    return counts


def jobs_state() -> list[str]:
    """`id|state|restarts` of every job that is not over."""
    return output("squeue", "-h", "-r", "-O", "JobArrayID:|,State:|,RestartCnt:|").split()


def jobs_of(job: str | None, field: str = "State") -> dict[str, str]:
    """One field of the accounting for every task of an array, by id."""
    lines = output("sacct", "-n", "-P", "-X", "-j", str(job), "-o", f"JobID,{field}").splitlines()
    return {line.partition("|")[0]: line.partition("|")[2] for line in lines}


@dataclass(frozen=True)
class Seen:
    """A run that a live process was doing a moment ago, and the last step that it logged."""

    step: int
    process: int
    job: str


def wait_for_step(run_dir: Path, step: int) -> Seen:
    """Wait until a live process has logged a step past `step`; a run logs more often than its heart beats."""
    found: list[Seen] = []

    def past() -> bool:
        try:
            lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
            now = json.loads((run_dir / "heartbeat.json").read_text())
        except (OSError, ValueError):
            return False
        logged = max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=-1)
        if logged > step and Path(f"/proc/{now['process']}").exists():
            found.append(Seen(logged, now["process"], now["job"]))
        return bool(found)

    wait_for(past, f"step {step} of {run_dir.name}", 180)
    return found[0]


@contextlib.contextmanager
def frozen(seen: Seen) -> Iterator[None]:
    """Stop a process in the middle of a step, so that its run is not over before a test is done with it."""
    os.kill(seen.process, signal.SIGSTOP)
    wait_for(lambda: about(seen.process)["State"].startswith("T"), "a process to stop")
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(seen.process, signal.SIGCONT)


def wait_for_warning(seen: Seen, seconds: float) -> None:
    """Wait until Slurm has sent USR2 to a frozen process; it may let it go on, too, to get the signal."""

    def warned() -> bool:
        now = about(seen.process)
        pending = int(now["ShdPnd"], 16) >> (signal.SIGUSR2 - 1) & 1
        return bool(pending) or not now["State"].startswith("T")

    wait_for(warned, "a warning of Slurm", seconds)


def wait_for_kill(seen: Seen, seconds: float) -> None:
    """Wait until Slurm has killed a frozen process; stop it again whenever Slurm lets it go on."""

    def gone() -> bool:
        if about(seen.process)["State"][0] in "XZ":
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(seen.process, signal.SIGSTOP)
        return False

    wait_for(gone, "Slurm to kill a process", seconds)


def about(pid: int) -> dict[str, str]:
    """What the kernel says of a process; a process that is gone counts as dead."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {"State": "X (dead)", "ShdPnd": "0"}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def kill_node(cluster: Cluster, name: str) -> None:
    """Kill the daemon of a node and everything that runs on it at once, as a power failure does."""
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
    """The ids of all processes of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def starts_work(pid: int) -> bool:
    """Whether a process is the Python of a job, from its first moment on."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False
    return "python" in Path(words[0]).name and "submitit.core._submit" in words


def environment(pid: int) -> list[str]:
    """The variables that a process began with."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """The parent's process id; 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
