"""A real Slurm on this machine for the tests: two nodes with two stand-in GPUs each, accounting, preemption.

    python tests/slurm/cluster.py up      # prints the line that lets a shell use it
    python tests/slurm/cluster.py down    # stops what `up` started, and nothing else

Needs root on Debian; installs Slurm's own packages where they are missing. HYPERP_SLURM_DIR moves it.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.environ.get("HYPERP_SLURM_DIR", "/tmp/hyperp-slurm"))  # short: it holds Unix sockets
NODES = ("n1", "n2")
GPUS = ("null", "zero")  # a character device passes for a GPU; a file leaves CUDA_VISIBLE_DEVICES unset
CONTROLLER_PORT, DATABASE_PORT, ACCOUNTING_PORT, FIRST_NODE_PORT = 26817, 23306, 26819, 27001
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "sbatch", "mariadbd", "mariadb")
PACKAGES = (
    *("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "slurm-wlm-mysql-plugin"),
    *("mariadb-server-core", "mariadb-client-core"),
)


@dataclass(frozen=True)
class Daemon:
    """A program, the name that its process has, and the file where it writes its process id."""

    program: str
    pid_file: Path
    arguments: tuple[str, ...] = ()

    def pid(self) -> int | None:
        """The process, if it lives, by name too: one that nobody has reaped still answers to signals."""
        try:
            pid = int(self.pid_file.read_text())
            state = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return None
        name, _, rest = state.partition("(")[2].rpartition(")")
        return pid if name == self.program and rest.split()[0] != "Z" else None

    def start(self) -> None:
        """Start it in the background; nothing if it lives."""
        if self.pid() is None:
            run([self.program, *self.arguments])
            wait_for(lambda: self.pid() is not None, f"{self.program} to start")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, in the end by force."""
        for attempt in (number, signal.SIGKILL):
            pid = self.pid()
            if pid is None:
                return
            os.kill(pid, attempt)
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: self.pid() is None, f"{self.program} to stop", 15)


class Cluster:
    """The cluster in `folder`. Its commands need SLURM_CONF in the environment, which `start` sets."""

    def __init__(self, folder: Path = FOLDER):
        self.folder = folder
        self.config = folder / "etc" / "slurm.conf"
        pids, etc = folder / "run", folder / "etc"
        self.munge = Daemon(
            "munged",
            pids / "munged.pid",
            (
                f"--key-file={folder}/munge/key",
                f"--socket={pids}/munge",
                f"--pid-file={pids}/munged.pid",
                f"--log-file={folder}/log/munged.log",
                f"--seed-file={folder}/munge/seed",
                "--force",
            ),
        )
        self.database = Daemon("mariadbd", pids / "mariadbd.pid", (f"--defaults-file={etc}/mariadb.cnf",))
        self.accounting = Daemon("slurmdbd", pids / "slurmdbd.pid")
        self.controller = Daemon("slurmctld", pids / "slurmctld.pid")
        self.nodes = {name: Daemon("slurmd", pids / f"slurmd.{name}.pid", ("-N", name)) for name in NODES}

    def start(self) -> None:
        """Install, configure and start whatever is missing; a second call does nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["SLURM_CONF"] = str(self.config)
        with exclusive(self.folder / ".lock"):
            install()
            self._write_files()
            self.munge.start()
            self._start_database()
            self.accounting.start()
            wait_for(lambda: succeeds("sacctmgr", "-n", "list", "cluster"), "accounting")
            if "hyperp" not in output("sacctmgr", "-n", "list", "cluster", "format=cluster").split():
                run(["sacctmgr", "-i", "add", "cluster", "hyperp"])
            self.controller.start()
            wait_for(lambda: succeeds("scontrol", "ping"), "the controller")
            self.revive()

    def revive(self) -> None:
        """Bring the nodes back up and wait until they take jobs."""
        for node in self.nodes.values():
            node.start()
        time.sleep(0.2)
        for name in NODES:
            if any(word in self.node_state(name) for word in ("down", "drain")):
                succeeds("scontrol", "update", f"nodename={name}", "state=resume")
        usable = ("idle", "mixed", "allocated", "completing")
        wait_for(lambda: all(self.node_state(name) in usable for name in NODES), "the nodes", 60)

    def node_state(self, name: str) -> str:
        """In sinfo's words: idle, mixed, down*, ..."""
        return output("sinfo", "-h", "-p", "main", "-n", name, "-o", "%T").strip()

    def stop(self) -> None:
        """Cancel every job, then stop the daemons in the order in which they need each other."""
        os.environ["SLURM_CONF"] = str(self.config)
        if self.controller.pid():
            self.clear()
        for daemon in (*self.nodes.values(), self.controller, self.accounting, self.database, self.munge):
            daemon.stop()

    def clear(self) -> None:
        """Cancel every job and wait until all have gone."""
        succeeds("scancel", "--user=root")
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not output("squeue", "-h").strip(), "jobs to end", 40)

    def _start_database(self) -> None:
        if not (self.folder / "mysql" / "mysql").is_dir():
            options = ("--user=root", f"--datadir={self.folder}/mysql", "--skip-test-db")
            method = "--auth-root-authentication-method=socket"
            run(["mariadb-install-db", "--no-defaults", *options, method])
        if self.database.pid() is None:
            with (self.folder / "log" / "mariadbd.out").open("a") as log:
                subprocess.Popen(
                    ["mariadbd", *self.database.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        client = ("mariadb", "--no-defaults", "-u", "root", "-S", f"{self.folder}/run/mariadb")
        wait_for(lambda: succeeds(*client, "-e", "select 1"), "the database", 60)
        grants = "create database if not exists slurm_acct_db;"
        for host in ("127.0.0.1", "localhost"):
            grants += f"create user if not exists slurm@'{host}' identified by 'slurm';"
            grants += f"grant all on slurm_acct_db.* to slurm@'{host}';"
        run([*client, "-e", grants])

    def _write_files(self) -> None:
        for name in ("etc", "run", "log", "state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        private(self.folder / "munge", None)
        if not (self.folder / "munge" / "key").exists():
            private(self.folder / "munge" / "key", os.urandom(256))
        host = socket.gethostname().partition(".")[0]
        etc = self.folder / "etc"
        self.config.write_text(slurm_conf(self.folder, host))
        gpus = [f"NodeName={','.join(NODES)} Name=gpu File=/dev/{device}" for device in GPUS]
        (etc / "gres.conf").write_text("\n".join(gpus) + "\n")
        # Never used (proctrack/linuxproc), but slurmd looks for a version of cgroups unless it is told one.
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        private(etc / "slurmdbd.conf", slurmdbd_conf(self.folder, host).encode())
        (etc / "mariadb.cnf").write_text(mariadb_conf(self.folder))


def slurm_conf(folder: Path, host: str) -> str:
    """`slurm.conf`; where a value matters to the tests, a comment says why."""
    return f"""
ClusterName=hyperp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={CONTROLLER_PORT}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MailProg=/bin/true
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: 5 s in place of 2 minutes.
AuthInfo=socket={folder}/run/munge,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Without control groups, polling is what enforces a memory limit.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Otherwise a job that asks for no memory takes a node's whole.
DefMemPerCPU=512
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
# More cores than the machine has, so that several tiny jobs share it.
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Sends the signal of `--signal` to a job that is preempted as well.
SlurmctldParameters=preempt_send_user_signal
# One more than the largest index of an array.
MaxArraySize=1000
ReturnToService=2
KillWait=5
SlurmdTimeout=10
MinJobAge=300
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ACCOUNTING_PORT}
AccountingStoragePass={folder}/run/munge
AccountingStorageTRES=gres/gpu
{_node_lines(host)}
PartitionName=main Nodes=ALL Default=YES PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def _node_lines(host: str) -> str:
    size = f"CPUs=4 RealMemory=8000 Gres=gpu:{len(GPUS)}"
    where = f"NodeHostname={host} NodeAddr=127.0.0.1"
    return "\n".join(
        f"NodeName={name} {where} Port={FIRST_NODE_PORT + i} {size}" for i, name in enumerate(NODES)
    )


def slurmdbd_conf(folder: Path, host: str) -> str:
    """`slurmdbd.conf`: without accounting nobody can say why a job of yesterday died."""
    return f"""
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ACCOUNTING_PORT}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={DATABASE_PORT}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def mariadb_conf(folder: Path) -> str:
    """Small, and quick rather than durable; slurmdbd asks for the lock timeout."""
    return f"""
[mariadbd]
user=root
datadir={folder}/mysql
socket={folder}/run/mariadb
pid-file={folder}/run/mariadbd.pid
bind-address=127.0.0.1
port={DATABASE_PORT}
innodb_buffer_pool_size=64M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=900
performance_schema=OFF
"""


def why_not() -> str | None:
    """Why this machine cannot have the cluster, or None."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    if not Path("/etc/debian_version").exists():
        return "a Slurm of its own is known to start on Debian only"
    return None


def install() -> None:
    """Install Slurm's packages if a program is missing, without the services that Debian would start."""
    plugins = Path("/usr/lib").glob("*/slurm-wlm/accounting_storage_mysql.so")
    if all(shutil.which(program) for program in PROGRAMS) and any(plugins):
        return
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        run(["apt-get", "-q", "update"], quiet)
        run(["apt-get", "-q", "-y", "--no-install-recommends", "install", *PACKAGES], quiet)
    finally:
        if ours:
            policy.unlink()


def private(path: Path, content: bytes | None) -> None:
    """Write a file, or make a folder, that only its owner reads; the daemons insist."""
    if content is None:
        path.mkdir(mode=0o700, exist_ok=True)
        return
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run to the end. Raises RuntimeError with what it printed if it fails."""
    # Not through a pipe: a daemon would keep it open.
    log = FOLDER / "log" / f"{Path(command[0]).name}.start"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, check=False
        )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)[:200]}: exit code {done.returncode}: {log.read_text()[-800:]}"
        )


def succeeds(*command: str) -> bool:
    """Whether a short command ends without error."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def output(*command: str) -> str:
    """What a short command prints, errors ignored."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False, text=True).stdout
    except subprocess.TimeoutExpired:
        return ""


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Poll until `condition` holds. Raises TimeoutError, naming `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock between processes; daemons started meanwhile do not inherit it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    """`up` or `down`."""
    if sys.argv[1:] not in (["up"], ["down"]):
        sys.exit("usage: cluster.py up | down")
    reason = why_not()
    if reason:
        sys.exit(reason)
    cluster = Cluster()
    if sys.argv[1] == "up":
        cluster.start()
        print(f"export SLURM_CONF={cluster.config}")
    else:
        cluster.stop()


if __name__ == "__main__":
    main()
