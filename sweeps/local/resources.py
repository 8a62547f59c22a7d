"""What a sweep may use of this machine: its cores, and GPUs for its workers."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> tuple[list[int], int]:
    """The cores that this process may run on, and how many of them it may keep busy."""
    can_pin = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if can_pin else list(range(os.cpu_count() or 1))
    groups = Path("/proc/self/cgroup")
    quota = cpu_quota(CGROUPS, groups.read_text()) if groups.exists() else math.inf
    return cores, max(1, math.floor(min(len(cores), quota)))


def cpu_quota(mount: Path, membership: str) -> float:
    """How many cores the control groups of a process allow; infinite without a limit.

    `mount` is where the groups are mounted, `membership` the text of /proc/self/cgroup. A limit binds every
    group below it, so all ancestors count; groups outside a container's own mount cannot be read.
    https://docs.kernel.org/admin-guide/cgroup-v2.html and .../scheduler/sched-bwc.html (version 1)
    """
    quotas = [math.inf]
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += [_read_quota(folder / "cpu.max") for folder in _with_ancestors(mount, path)]
        elif "cpu" in controllers.split(","):
            for base in (mount / "cpu", mount / controllers):
                folders = _with_ancestors(base, path)
                quotas += [
                    _read_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
                    for folder in folders
                ]
    return min(quotas)


def _with_ancestors(base: Path, path: str) -> list[Path]:
    folder = base / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]


def _read_quota(*files: Path) -> float:
    """Quota over period, in microseconds each: both in one file (version 2) or in two (version 1)."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return float(quota) / float(period) if quota not in ("max", "-1") else math.inf
    except (OSError, ValueError):  # no such group, or no such controller
        return math.inf


def visible_gpu_names(devices: Iterable[str], visible: str | None, count: int) -> list[str]:
    """The names of the GPUs to give to workers, as CUDA_VISIBLE_DEVICES writes them.

    `devices` are the runs' runtime.device, `visible` the value of CUDA_VISIBLE_DEVICES, `count` how many
    devices CUDA finds. Empty if no run uses a GPU, or if one names its own (cuda:1), which must see all.
    """
    asked = set(devices)
    if not count or not asked & {"auto", "cuda"} or any(device.startswith("cuda:") for device in asked):
        return []
    if visible is None:
        return [str(i) for i in range(count)]
    entries = [entry.strip() for entry in visible.split(",")]
    # CUDA ends the list at the first device it does not find, and counts at most one MIG instance.
    return entries if entries[0].startswith("MIG-") else entries[:count]


def core_shares(cores: Sequence[int], usable: int, workers: int, threads: int) -> list[list[int] | None]:
    """The cores of each worker; None leaves it unpinned.

    No worker is pinned if a quota allows less than the cores (every container on the machine would crowd onto
    the same first ones), if there are too few cores, or if the system cannot pin.
    """
    pin = hasattr(os, "sched_setaffinity") and workers * threads <= len(cores) == usable
    return [list(cores[i * threads : (i + 1) * threads]) if pin else None for i in range(workers)]
