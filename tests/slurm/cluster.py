"""A real Slurm on this machine for the tests: two nodes with two stand-in GPUs each, accounting, preemption.

    python tests/slurm/cluster.py up              # prints the line that lets a shell use it
    python tests/slurm/cluster.py down            # stops what `up` started, and nothing else
    python tests/slurm/cluster.py run COMMAND...  # up, the command, and down again if it was not up before
    python tests/slurm/cluster.py if-up COMMAND...  # the command where it is up, else a line that says no

Needs root on Debian; installs Slurm's own packages where they are missing. HYPERP_SLURM_DIR moves it. Where
there can be no Slurm, `run` says why and runs the command without it.
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
from typing import NoReturn

from configuration import GPUS, NODES, mariadb_conf, slurm_conf, slurmdbd_conf

FOLDER = Path(os.environ.get("HYPERP_SLURM_DIR", "/tmp/hyperp-slurm"))  # short: it holds Unix sockets
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "sbatch", "mariadbd", "mariadb")
PACKAGES = (
    *("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "slurm-wlm-mysql-plugin"),
    *("mariadb-server-core", "mariadb-client-core"),
)


class NotInstalledError(RuntimeError):
    """Slurm's packages are missing and cannot be installed."""


@dataclass(frozen=True)
class Daemon:
    """A program, the name that its process has, and the file where it writes its process id."""

    program: str
    pid_file: Path
    arguments: tuple[str, ...] = ()

    def pid(self) -> int | None:
        """The process id if the process lives; its name is checked, since zombies still answer to signals."""
        try:
            pid = int(self.pid_file.read_text())
            state = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return None
        name, _, rest = state.partition("(")[2].rpartition(")")
        return pid if name == self.program and rest.split()[0] != "Z" else None

    def start(self) -> None:
        """Start it in the background, unless it lives."""
        if self.pid() is None:
            run([self.program, *self.arguments])
            wait_for(lambda: self.pid() is not None, f"{self.program} to start")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, by force if it does not end."""
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

        def usable(name: str) -> bool:
            state = self.node_state(name)
            if "down" in state or "drain" in state:
                succeeds("scontrol", "update", f"nodename={name}", "state=resume")
            return state in ("idle", "mixed", "allocated", "completing")

        wait_for(lambda: all(usable(name) for name in NODES), "the nodes", 90)

    def node_state(self, name: str) -> str:
        """The state of a node as sinfo has it: idle, mixed, down*, ..."""
        return output("sinfo", "-h", "-p", "main", "-n", name, "-o", "%T").strip()

    def stop(self) -> None:
        """Cancel every job, then stop the daemons in the order in which they need each other."""
        os.environ["SLURM_CONF"] = str(self.config)
        if self.controller.pid():
            with contextlib.suppress(TimeoutError):
                self.clear()
        for daemon in (*self.nodes.values(), self.controller, self.accounting, self.database, self.munge):
            daemon.stop()

    def clear(self) -> None:
        """Cancel every job and wait until all have gone."""
        succeeds("scancel", "--user=root")
        self.settle(90)

    def settle(self, seconds: float = 300) -> None:
        """Wait until Slurm has no job in the queue or on a node; a job that is ending still counts."""

        def idle() -> bool:
            done = subprocess.run(["squeue", "-h"], capture_output=True, check=False)
            return done.returncode == 0 and not done.stdout.strip()

        wait_for(idle, "the jobs to end", seconds)

    def kill_controller(self, job: str) -> None:
        """SIGKILL, once it has noted on disk that `job`, which runs, does so.

        It writes every few seconds only: killed before, it would forget a new job, or send it to a node again
        and drain that for a duplicate id.
        """
        mark = f"mark-{time.monotonic_ns()}"
        run(["scontrol", "update", f"jobid={job}", f"comment={mark}"])
        state = self.folder / "state" / "job_state"
        wait_for(lambda: mark.encode() in state.read_bytes(), "the controller to save its state")
        self.controller.stop(signal.SIGKILL)

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


def why_not() -> str | None:
    """Why the cluster cannot run on this machine, or None."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    if not Path("/etc/debian_version").exists():
        return "a Slurm of its own is known to start on Debian only"
    return None


def install() -> None:
    """Install Slurm's packages if a program is missing, without the services that Debian would start.

    Raises NotInstalledError.
    """
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
    except RuntimeError as error:
        raise NotInstalledError(f"its packages cannot be installed: {error}") from None
    finally:
        if ours:
            policy.unlink()


def private(path: Path, content: bytes | None) -> None:
    """Write a file, or make a folder, that only its owner can read, as the daemons require."""
    if content is None:
        path.mkdir(mode=0o700, exist_ok=True)
        return
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a command to its end. Raises RuntimeError with its output if it fails."""
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
    """The output of a short command; errors are ignored."""
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


def beside(cluster: Cluster, command: Sequence[str]) -> int:
    """Run a command while the cluster is up; however it ends, stop the cluster if it was not up before.

    Returns the command's exit code. Where there can be no cluster, the command runs without.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, _leave)
    ours = cluster.controller.pid() is None
    try:
        reason = why_not()
        try:
            if reason is None:
                cluster.start()
        except NotInstalledError as error:
            reason = str(error)
        if reason:
            print(f"no Slurm is started, and what needs one is skipped: {reason}", file=sys.stderr)
        with subprocess.Popen(command) as child:
            try:
                return child.wait()
            except BaseException:
                child.terminate()
                raise
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if ours:
            cluster.stop()


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """`up`, `down`, `run` or `if-up`."""
    verb, command = "".join(sys.argv[1:2]), sys.argv[2:]
    if verb not in ("up", "down", "run", "if-up") or (verb in ("run", "if-up")) != bool(command):
        sys.exit("usage: cluster.py up | down | run COMMAND... | if-up COMMAND...")
    cluster = Cluster()
    if verb == "run":
        sys.exit(beside(cluster, command))
    if verb == "if-up" and cluster.controller.pid() is None:
        print("no Slurm is up, so this is left out:", *command)
        return
    if verb == "if-up":
        sys.exit(subprocess.call(command))
    reason = why_not()
    if reason:
        sys.exit(reason)
    if verb == "up":
        cluster.start()
        print(f"export SLURM_CONF={cluster.config}")
    else:
        cluster.stop()


if __name__ == "__main__":
    main()
