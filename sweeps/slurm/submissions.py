"""`jobs.json`: what was submitted to Slurm, so that any process that sees the folder can find it."""

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from hyperp.sweeps.runs.manifest import Manifest

NAME = "jobs.json"


@dataclass(frozen=True)
class Submission:
    """One array of jobs, or a single job.

    `name` is the name of its jobs in Slurm. It is unique; ids are not, since they start over when a cluster
    is set up anew. `job` is the id that sbatch gave, null until then. `folder` is submitit's, `tasks` has the
    run ids of each task.
    """

    name: str
    submitted: str
    folder: str
    job: str | None
    tasks: list[list[str]]

    def job_id(self, task: int) -> str | None:
        """The job id of a task, as squeue writes it; None before sbatch gave one."""
        if self.job is None:
            return None
        return f"{self.job}_{task}" if len(self.tasks) > 1 else self.job


MANIFEST = Manifest(NAME, "submissions", TypeAdapter(list[Submission]), "submitted", "no job is in the queue")
read_submissions = MANIFEST.read


def append_submission(root: Path, submission: Submission) -> None:
    """Add a submission. The caller holds the lock of the sweep."""
    MANIFEST.write(root, [*read_submissions(root), submission])


def record_job_id(root: Path, name: str, job: str) -> None:
    """Note the job id that sbatch gave to a submission. The caller holds the lock of the sweep."""
    MANIFEST.write(
        root, [replace(one, job=job) if one.name == name else one for one in read_submissions(root)]
    )
