"""`jobs.json`: what was handed to Slurm, so that any process that sees the folder can find it again."""

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from hyperp.sweeps.runs.manifest import Manifest

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


MANIFEST = Manifest(NAME, "submissions", TypeAdapter(list[Submission]), "submitted", "no job is in the queue")
read_submissions = MANIFEST.read


def append_submission(root: Path, submission: Submission) -> None:
    """Add one; only under the lock of the sweep."""
    MANIFEST.write(root, [*read_submissions(root), submission])


def record_job_id(root: Path, name: str, job: str) -> None:
    """Note the id that Slurm gave to a submission; only under the lock of the sweep."""
    MANIFEST.write(
        root, [replace(one, job=job) if one.name == name else one for one in read_submissions(root)]
    )
