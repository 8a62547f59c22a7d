"""Starts a command and does not outlive its parent; ends the command with it, or when asked to.

    python guard.py PARENT SIGNAL GRACE FOLDER COMMAND...

A process between a worker and a command, because a command may ignore signals, leave processes behind, or go
on after its worker was killed, and would then train a run that another worker takes up. SIGTERM from anybody,
or the death of the parent, sends SIGNAL to the command's processes; once these have ended, this process ends
by SIGTERM, and by SIGKILL if they had to be killed after GRACE seconds. Otherwise it ends as the command did,
by the same exit code or signal. It holds the files that it inherits, among them the lock of the run, for as
long as the command lives. Uses the standard library alone.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
NOT_FOUND = 127  # exit code, as of a shell
TICK_SECONDS = 0.1


def main() -> None:
    """Run the command of the arguments."""
    parent, asked_signal, grace, folder = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]
    command = sys.argv[5:]
    asked: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(time.monotonic()) if not asked else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    call_prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    call_prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            start_new_session=True,
            preexec_fn=_prepare_command,
            pass_fds=_inherited_files(),
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror or error}", file=sys.stderr, flush=True)
        sys.exit(NOT_FOUND)
    warned = 0.0
    while process.poll() is None or (asked and _group_lives(process)):
        if os.getppid() != parent and not asked:
            asked.append(time.monotonic())
        if asked and not warned:
            warned = time.monotonic()
            _signal_group(process, getattr(signal, asked_signal))
        if warned and time.monotonic() - warned > grace:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(TICK_SECONDS)
    _signal_group(process, signal.SIGKILL)  # what the command has left behind
    _end_as(-signal.SIGTERM if asked else process.returncode)


def call_prctl(option: int, value: int) -> None:
    """Call prctl(2), where there is one."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(option, value)


def _inherited_files() -> list[int]:
    """The open files beside the standard ones, such as the run's lock, which the command is to hold too."""
    found = []
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            found.append(descriptor)
    return found


def _group_lives(process: "subprocess.Popen[Any]") -> bool:
    """Whether any of the command's processes lives; its first one has ended and may have left others."""
    with contextlib.suppress(ChildProcessError):  # reap those that this process has adopted
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _prepare_command() -> None:
    call_prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # if this process is killed, nobody holds the run
    # Slurm sends its warning to every process of a job; only the worker is to act on it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _signal_group(process: "subprocess.Popen[Any]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _end_as(code: int) -> None:
    if code >= 0:
        sys.exit(code)
    with contextlib.suppress(OSError, ValueError):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    sys.exit(128 - code)


if __name__ == "__main__":
    main()
