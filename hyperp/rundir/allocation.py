"""What Slurm says about this process: its job, how often the job was restarted, which GPUs it has."""

import os


def job_id() -> str | None:
    """The Slurm job, `12`, or the task of a job array, `12_3`, as squeue prints it; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def slurm_environment() -> dict[str, str]:
    """What a record keeps about the job: its id, restart count, node and GPUs; empty outside Slurm."""
    job = job_id()
    if job is None:
        return {}
    found = {"slurm_job_id": job, "slurm_restart_count": os.environ.get("SLURM_RESTART_COUNT", "0")}
    names = {"slurm_node": "SLURMD_NODENAME", "cuda_visible_devices": "CUDA_VISIBLE_DEVICES"}
    return found | {key: os.environ[name] for key, name in names.items() if name in os.environ}
