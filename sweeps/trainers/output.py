"""Following what a command prints: the step that it has reached, and the id of its W&B run."""

import math
import re
import time
from pathlib import Path

from hyperp.sweeps.plan.command_section import Progress

# The line that wandb prints when a run begins: https://wandb.ai/ENTITY/PROJECT/runs/ID, or its local folder.
WANDB_RUN = re.compile(r"wandb:.*?(?:/runs/|(?:offline-)?run-\d{8}_\d{6}-)(?P<id>[a-z0-9]{6,})")
LONGEST = 4096  # bytes that are kept of a line without an end
TAIL = 2**16  # bytes at the end of the output in which to look for what went wrong
LONGEST_QUOTE = 300  # characters
# How Python's tracebacks end, also behind the prefix of a rank; and what torchrun raises about its workers.
ERROR = re.compile(r"(?:\[\S+\]:?\s*)?(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b")
NOT_THE_CAUSE = ("torch.distributed.elastic", "subprocess.CalledProcessError")
OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemoryError|MemoryError|can't allocate memory", re.IGNORECASE)


class OutputFollower:
    """Reads what is appended to a file, from where it was at the start, and knows the last step in it."""

    def __init__(self, path: Path, progress: Progress | None, steps: int | None, tokens: int | None):
        self.path = path
        self.pattern = re.compile(progress.pattern) if progress else None
        self.step, self.steps, self.tokens = 0, steps or 0, tokens
        self.highest = 0  # step in the output of this attempt, which may begin before the last one's end
        self.reported_speed: float | None = None
        self.wandb: str | None = None
        self.position = path.stat().st_size if path.exists() else 0
        self.start_position, self.rest = self.position, ""
        self.first: tuple[int, float] | None = None  # the first step that was seen, and when

    def update(self) -> bool:
        """Read what is new; whether the step has changed."""
        before = self.step
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                data = file.read()
        except OSError:
            return False
        self.position += len(data)
        # A progress bar ends its lines with carriage returns.
        lines = (self.rest + data.decode(errors="replace")).replace("\r", "\n").split("\n")
        self.rest = lines.pop()[-LONGEST:]
        for line in lines:
            self._read_line(line)
        return self.step != before

    def _read_line(self, line: str) -> None:
        if self.wandb is None and (found := WANDB_RUN.search(line)):
            self.wandb = found["id"]
        if self.pattern is None or not (match := self.pattern.search(line)):
            return
        groups = match.groupdict()
        step = _number(groups.get("step"))
        if step is None or step < self.highest:  # a lower one is of another bar, as an evaluation has
            return
        self.step = self.highest = int(step)
        self.first = self.first or (self.step, time.monotonic())
        if steps := _number(groups.get("steps")):
            self.steps = int(steps)
        self.reported_speed = _number(groups.get("tokens_per_second")) or self.reported_speed

    def speed(self) -> float:
        """Tokens per second, as printed or from the steps seen so far; 0 while unknown."""
        if self.reported_speed is not None:
            return self.reported_speed
        if self.first is None or not self.tokens or not self.steps:
            return 0.0
        steps, seconds = self.step - self.first[0], time.monotonic() - self.first[1]
        return steps * self.tokens / self.steps / seconds if seconds > 0 else 0.0

    def last_words(self) -> str:
        """The last line of this attempt that names an error, or else the last with words; may be empty."""
        lines = [line.strip() for line in self._tail().split("\n") if re.search(r"\w", line)]
        errors = [line for line in lines if ERROR.match(line) and not line.startswith(NOT_THE_CAUSE)]
        return (errors or lines or [""])[-1][:LONGEST_QUOTE]

    def lacked_memory(self) -> bool:
        """Whether the end of this attempt's output says that memory was not enough."""
        return bool(OUT_OF_MEMORY.search(self._tail()))

    def _tail(self) -> str:
        try:
            with self.path.open("rb") as file:
                file.seek(max(self.start_position, self.path.stat().st_size - TAIL))
                return file.read().decode(errors="replace").replace("\r", "\n")
        except OSError:
            return ""


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").replace(",", "").replace("_", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
