"""Time from submit to the last record of trivial runs, with `hyperp-sweep submit` and with submitit alone.

    python tests/slurm/cluster.py up        # or any Slurm: SLURM_CONF and a partition that takes the jobs
    SLURM_CONF=/tmp/hyperp-slurm/etc/slurm.conf python tests/benchmarks/bench_orchestrator.py --runs 50

Both submit the runs as one array and do the same training in each job; `hyperp-sweep` also plans, checks and
records what it submitted. Alternates the two, and prints the ratio of the medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import submitit

from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.runs.run import execute_run

COMMAND = Path(sys.executable).with_name("hyperp-sweep")
TRIVIAL = [
    *("scale.width=16", "scale.depth=1", "scale.tokens=512", "scale.batch_tokens=256", "model.context=64"),
    *("model.head_size=8", "data.held_out_tokens=1024", "runtime.checkpoint_every=0", "runtime.threads=1"),
]


def plan_overrides(root: Path, runs: int) -> list[str]:
    """The overrides of a plan with this many runs."""
    seeds = ",".join(map(str, range(runs)))
    return [*TRIVIAL, f"+sweep.blocks.a.grid={{seed:[{seeds}]}}", f"runtime.root={root}"]


def wait_for_records(root: Path, runs: int) -> None:
    """Return when every run has ended."""
    while len(list(root.glob("*/record.json"))) < runs:
        time.sleep(0.05)


def time_hyperp_sweep(root: Path, runs: int) -> float:
    """Seconds from the command to the last record."""
    start = time.monotonic()
    options = ["launcher=slurm", "launcher.time=10m"]
    subprocess.run(
        [COMMAND, "submit", *plan_overrides(root, runs), *options], check=True, stdout=subprocess.DEVNULL
    )
    wait_for_records(root, runs)
    return time.monotonic() - start


def time_submitit(root: Path, runs: int) -> float:
    """Seconds from the first call of submitit's executor to the last record."""
    points = make_plan(plan_overrides(root, runs)).points
    start = time.monotonic()
    executor = submitit.AutoExecutor(root / "submitit", cluster="slurm")
    executor.update_parameters(timeout_min=10, cpus_per_task=1, slurm_array_parallelism=256)
    executor.map_array(execute_run, [asdict(p.config) for p in points], [str(p.run_dir) for p in points])
    wait_for_records(root, runs)
    return time.monotonic() - start


def main() -> None:
    """Print the seconds of both, and the ratio of their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    times: dict[str, list[float]] = {"hyperp-sweep": [], "submitit": []}
    for _ in range(args.repeats):
        for name, measure in (("submitit", time_submitit), ("hyperp-sweep", time_hyperp_sweep)):
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                times[name].append(measure(Path(folder) / "root", args.runs))
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        spread = f"{min(seconds):.2f} ... {max(seconds):.2f}"
        print(f"{name:13} {middle:7.2f} s, {middle / args.runs:.3f} s a run  ({spread})")
    ratio = statistics.median(times["hyperp-sweep"]) / statistics.median(times["submitit"])
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
