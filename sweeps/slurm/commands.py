"""What Slurm knows about jobs, from its own commands: squeue, sacct, scontrol, scancel."""

import getpass
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING")
ACTIVE = (*RUNNING, "SUSPENDED", "STOPPED", "STAGE_OUT")
QUEUE_FIELDS = ("JobArrayID", "Name", "State", "Reason", "exit_code", "RestartCnt", "TimeLeft")
ACCOUNT_FIELDS = ("JobID", "JobName", "State", "ExitCode", "ReqMem", "MaxRSS", "NodeList")
END_CAUSES = {  # Slurm's state: a reason for people, and one of `hyperp.rundir.record.CAUSES`
    "TIMEOUT": ("time limit reached", "timed_out"),
    "DEADLINE": ("deadline reached", "timed_out"),
    "OUT_OF_MEMORY": ("out of memory", "out_of_memory"),
    "NODE_FAIL": ("node failure", "node_failed"),
    "BOOT_FAIL": ("node failure", "node_failed"),
    "PREEMPTED": ("preempted", "preempted"),
    "CANCELLED": ("cancelled", "cancelled"),
    "REVOKED": ("revoked", "cancelled"),
}
AT_ONCE = 500  # job ids in one command line
LATE_SECONDS = 5.0  # how far the accounting may lag behind the controller
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class SlurmError(RuntimeError):
    """A command of Slurm is missing or failed."""


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one task of an array. `end_reason` and `cause` are set once it is over."""

    job_id: str
    name: str
    state: str
    pending_reason: str | None = None
    end_reason: str | None = None
    cause: str | None = None
    restarts: int = 0
    time_left: str | None = None

    @property
    def pending(self) -> bool:
        """Whether it waits in the queue, for the first time or again."""
        return self.state in PENDING

    @property
    def active(self) -> bool:
        """Whether it has a node."""
        return self.state in ACTIVE

    @property
    def in_flight(self) -> bool:
        """Whether it is pending or active."""
        return self.pending or self.active


def queued_jobs() -> dict[str, SlurmJob]:
    """This user's jobs by id, from squeue; ended ones stay for a few minutes."""
    layout = ",".join(f"{name}:|" for name in QUEUE_FIELDS)
    text = _run_command("squeue", "-h", "-r", "--states=all", f"--user={getpass.getuser()}", "-O", layout)
    jobs = {}
    for line in text.splitlines():
        values = dict(zip(QUEUE_FIELDS, (value.strip() for value in line.split("|")), strict=False))
        state, status = values["State"], int(values["exit_code"] or 0)
        over = state not in (*PENDING, *ACTIVE)
        end_reason, cause = _end_cause(state, status >> 8, status & 127) if over else (None, None)
        jobs[values["JobArrayID"]] = SlurmJob(
            values["JobArrayID"],
            values["Name"],
            state,
            pending_reason=values["Reason"] if state in PENDING else None,
            end_reason=end_reason,
            cause=cause,
            restarts=int(values["RestartCnt"] or 0),
            time_left=values["TimeLeft"],
        )
    return jobs


def accounted_jobs(job_ids: Iterable[str], failed: Collection[str] = ()) -> dict[str, SlurmJob]:
    """What sacct says of jobs, by id; empty on a cluster without accounting.

    `failed` are jobs that the controller calls FAILED. Only the accounting knows how much memory their steps
    used, and it learns of the end a moment later, so it is asked again for up to LATE_SECONDS.
    """
    wanted, deadline = sorted(job_ids), time.monotonic() + LATE_SECONDS
    while True:
        try:
            jobs = _ask_accounting(wanted)
        except SlurmError:
            return {}
        late = [job_id for job_id in failed if job_id not in jobs or jobs[job_id].in_flight]
        if not late or time.monotonic() > deadline:
            return jobs
        time.sleep(0.2)


def _ask_accounting(job_ids: Sequence[str]) -> dict[str, SlurmJob]:
    jobs: dict[str, SlurmJob] = {}
    for some in _batches(job_ids):
        text = _run_command("sacct", "-n", "-P", "-j", ",".join(some), "-o", ",".join(ACCOUNT_FIELDS))
        names: list[str] = list(ACCOUNT_FIELDS)
        rows = [dict(zip(names, line.split("|"), strict=False)) for line in text.splitlines()]
        steps: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            steps.setdefault(row["JobID"].partition(".")[0], []).append(row)
        jobs |= {job_id: _job_from_steps(job_id, own) for job_id, own in steps.items()}
    return jobs


def _job_from_steps(job_id: str, rows: Sequence[dict[str, str]]) -> SlurmJob:
    """One job from the rows of sacct: its own, which comes first, and those of its steps."""
    job = rows[0]
    state = job["State"].split()[0]  # CANCELLED by 0
    if state in (*PENDING, *ACTIVE):
        return SlurmJob(job_id, job["JobName"], state)
    steps = [row["ExitCode"] for row in rows if row["JobID"].rpartition(".")[2].isdecimal()]
    # A step's exit code is its own; the job's is the batch shell's, of which sacct drops a bit.
    code, _, number = next((step for step in reversed(steps) if step != "0:0"), job["ExitCode"]).partition(
        ":"
    )
    end_reason, cause = _end_cause(state, int(code), int(number or 0))
    peak, limit = max(_parse_bytes(row["MaxRSS"]) for row in rows), _parse_bytes(job["ReqMem"])
    step_states = {row["State"].split()[0] for row in rows}
    # If Slurm polls the memory of a job, it kills the step and does not say why.
    if state == "FAILED" and ("OUT_OF_MEMORY" in step_states or 0 < limit < peak):
        end_reason, cause = END_CAUSES["OUT_OF_MEMORY"]
        end_reason = f"{end_reason}: {peak / 2**20:.0f} MB of {limit / 2**20:.0f}" if peak else end_reason
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        end_reason = f"{end_reason} on {job['NodeList']}"
    return SlurmJob(job_id, job["JobName"], state, end_reason=end_reason, cause=cause)


def _end_cause(state: str, code: int, number: int) -> tuple[str, str]:
    if state in END_CAUSES:
        return END_CAUSES[state]
    if state == "COMPLETED":
        return "its job ended without a record", "exited"
    if number or code > 128:  # a shell adds 128 to the signal that ended its command
        return f"killed by signal {number or code - 128}", "killed"
    return f"exit code {code}", "exited"


def _parse_bytes(text: str) -> float:
    """Bytes of `501600K` or `200M`; 0 for an empty text or a limit for each core (`512Mc`)."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)n?", text)
    return float(match[1]) * UNITS.get(match[2], 1) if match else 0.0


def max_array_size() -> int:
    """The largest number of tasks in an array on this cluster."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _run_command("scontrol", "show", "config"))
    return int(match[1]) if match else 1


def cancel_jobs(job_ids: Iterable[str]) -> None:
    """Cancel jobs and tasks of arrays; ended ones are left alone."""
    for some in _batches(list(job_ids)):
        _run_command("scancel", "--quiet", *some)


def requeue_job(job_id: str) -> None:
    """Put a running job back into the queue; Slurm then ends its processes."""
    _run_command("scontrol", "requeue", job_id)


def _batches(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE)]


def _run_command(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]} is not on this machine")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within 120 s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise SlurmError(f"{command[0]}: {lines[0]}")
    return done.stdout
