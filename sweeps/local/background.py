"""The process that does runs in the background. `background_pools` starts it and hands it two open locks.

It ends when no run is left to do, or on SIGTERM; however it ends, its workers end with it.
"""

import contextlib
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from hyperp import files
from hyperp.sweeps.console import raise_keyboard_interrupt
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.local.pool import Event, RunEnded
from hyperp.sweeps.runs.status import counts_line, run_state


def main() -> None:
    """Do the runs of the last pool in local.json. Arguments: ROOT, and the open locks' file descriptors."""
    root, locks = Path(sys.argv[1]), [os.fdopen(int(word), "a") for word in sys.argv[2:]]
    signal.signal(signal.SIGTERM, stop_once)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for lock in locks:
        files.write_holder(lock)
    process = PoolProcess(root, locks[-1].fileno())
    try:
        process.run()
    except KeyboardInterrupt:
        process.note_end("cancelled")
    except BaseException:
        process.note_end("broken")
        raise
    else:
        process.note_end("done")


def stop_once(number: int, frame: object) -> NoReturn:
    """A signal handler: stop the work as Ctrl-C does, and ignore the signal while stopping."""
    signal.signal(number, signal.SIG_IGN)
    raise_keyboard_interrupt(number, frame)


class PoolProcess:
    """This process: it does the runs of its pool and keeps the pool's entry in local.json up to date."""

    def __init__(self, root: Path, lock: int):
        self.root, self.lock, self.beat = root, lock, 0.0
        self.pool = replace(background_pools.read_pools(root)[-1], process=os.getpid())
        background_pools.note_last_pool(root, self.pool)

    def run(self) -> None:
        """Do every run of the pool."""
        from hyperp.sweeps.local.work import run_with_display

        run_with_display(
            background_pools.pool_points(self.root, self.pool), self.pool.launcher, self.note_event
        )

    def note_event(self, event: Event) -> None:
        """Note a failure, and renew the lock file's time; a full disk must not end the other runs."""
        with contextlib.suppress(OSError):
            if isinstance(event, RunEnded) and event.status == "failed":
                failed = self.pool.failed | {
                    event.run_id: background_pools.PoolFailure(event.reason, event.cause)
                }
                self.pool = replace(self.pool, failed=failed)
                background_pools.note_last_pool(self.root, self.pool)
            if time.monotonic() - self.beat >= background_pools.BEAT_SECONDS:
                self.beat = time.monotonic()
                os.utime(self.lock)

    def note_end(self, how: str) -> None:
        """Note how this process ended, before it gives up the locks."""
        with contextlib.suppress(OSError):
            background_pools.note_last_pool(self.root, replace(self.pool, ended=how))
        runs = [run_state(self.root, run_id, None) for run_id in self.pool.runs]
        print(f"{how}: {counts_line(runs)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
