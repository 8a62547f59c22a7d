"""`jobs.json`: what was handed to Slurm, so that any process that sees the folder can find it again."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hyperp import files
from hyperp.sweeps.plan import validation_line

SCHEMA = 1
NAME = "jobs.json"


@dataclass(frozen=True)
class Submission:
    """One array of jobs, or a single job.

    `name` is what Slurm calls its jobs. It is unique, as ids are not: they begin again when a cluster is set
    up anew. `job` is the id that sbatch answered with, null until it has. `folder` is submitit's, `tasks` the
    ids of the runs of each task.
    """

    name: str
    submitted: str
    folder: str
    job: str | None
    tasks: list[list[str]]

    def job_id(self, task: int) -> str | None:
        """Of one task, as squeue writes it."""
        if self.job is None:
            return None
        return f"{self.job}_{task}" if len(self.tasks) > 1 else self.job


ALL = TypeAdapter(list[Submission])


def read(root: Path) -> list[Submission]:
    """The submissions below `root`, oldest first. Raises ValueError if the file is damaged."""
    path = root / NAME
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}")
        return ALL.validate_python(value.get("submissions"))
    except FileNotFoundError:
        return []
    except ValidationError as error:
        reason = validation_line("submissions", error)
    except ValueError as error:  # of JSON or of UTF-8
        reason = str(error)
    raise ValueError(
        f"{path} does not say what was submitted ({reason}); remove it if no job is in the queue"
    )


def append(root: Path, submission: Submission) -> None:
    """Add one; only under the lock of the sweep."""
    _write(root, [*read(root), submission])


def answered(root: Path, name: str, job: str) -> None:
    """Note the id that Slurm gave to a submission; only under the lock of the sweep."""
    _write(root, [replace(one, job=job) if one.name == name else one for one in read(root)])


def _write(root: Path, submissions: list[Submission]) -> None:
    files.write_json(root / NAME, {"schema": SCHEMA, "submissions": [asdict(one) for one in submissions]})
