"""Where jobs that are queued since before version 0.2 look for their task; kept for one release."""

from hyperp.sweeps.slurm.job import Task as Task
