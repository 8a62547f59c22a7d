"""For jobs that were submitted before version 0.2, which unpickle `Task` from here; remove in 0.3."""

from hyperp.sweeps.slurm.job import Task as Task
