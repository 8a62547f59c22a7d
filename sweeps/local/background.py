"""The process that does runs in the background; `background_pools` starts it, with its locks open.

It ends when no run is left to do, or when it is told to (SIGTERM); however it ends, its workers end with it.
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
from hyperp.sweeps.console import interrupt
from hyperp.sweeps.local import background_pools as local
from hyperp.sweeps.local.pool import Ended, Event
from hyperp.sweeps.runs.status import counts_line, state_of


def main() -> None:
    """Do the runs of the last pool that was noted below the folder named by the first word."""
    root, locks = Path(sys.argv[1]), [os.fdopen(int(word), "a") for word in sys.argv[2:]]
    signal.signal(signal.SIGTERM, once)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for lock in locks:
        files.write_holder(lock)
    duty = Duty(root, locks[-1].fileno())
    try:
        duty.do()
    except KeyboardInterrupt:
        duty.end("cancelled")
    except BaseException:
        duty.end("broken")
        raise
    else:
        duty.end("done")


def once(number: int, frame: object) -> NoReturn:
    """A signal handler that stops the work, and lets nothing come between when it is being stopped."""
    signal.signal(number, signal.SIG_IGN)
    interrupt(number, frame)


class Duty:
    """What a pool has to do, and to say of itself while it does."""

    def __init__(self, root: Path, lock: int):
        self.root, self.lock, self.beat = root, lock, 0.0
        self.pool = replace(local.read(root)[-1], process=os.getpid())
        local.note(root, self.pool)

    def do(self) -> None:
        """Every run."""
        from hyperp.sweeps.local.work import work

        work(local.points(self.root, self.pool), self.pool.launcher, self.take)

    def take(self, event: Event) -> None:
        """Note a failure, and renew the time of the lock; a full disk must not end the other runs."""
        with contextlib.suppress(OSError):
            if isinstance(event, Ended) and event.status == "failed":
                failed = self.pool.failed | {event.run_id: local.Failure(event.reason, event.cause)}
                self.pool = replace(self.pool, failed=failed)
                local.note(self.root, self.pool)
            if time.monotonic() - self.beat >= local.BEAT_SECONDS:
                self.beat = time.monotonic()
                os.utime(self.lock)

    def end(self, how: str) -> None:
        """Note how it ended, before the locks are given up."""
        with contextlib.suppress(OSError):
            local.note(self.root, replace(self.pool, ended=how))
        runs = [state_of(self.root, run_id, None) for run_id in self.pool.runs]
        print(f"{how}: {counts_line(runs)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
