"""The token ladder of the GPU kit: train it, longer horizons only if they fit, and fit each optimizer's law.

    python tests/gpu/ladder.py --runs runs/gpu_ladder --table reports/gpu/ladder_runs.csv --seconds 250

Runs share the card side by side. The speed of the shorter horizons says whether the next one fits into the
time that is left.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HORIZONS = (2**21, 2**22, 2**23, 2**24, 2**25)  # tokens, as in conf/sweep/gpu_ladder.yaml
FIRST = 3  # horizons that are trained whatever they take
TABLE_SECONDS = 25  # to collect and fit
OPTIMIZERS = ("muonh", "sso")
SWEEP, LAW = "hyperp.sweeps.cli.main", "hyperp.analysis.cli.main"
TINY = [
    "scale.width=64",
    "scale.depth=2",
    "scale.batch_tokens=1024",
    "data.held_out_tokens=4096",
    "launcher.workers=2",
]


def call(module: str, *words: object) -> int:
    """Run one of the project's commands, found without an installed script; returns its exit code."""
    code = f"import sys; from {module} import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-P", "-c", code, *map(str, words)], check=False).returncode


def main() -> int:
    """Exit 1 if runs or their table failed; a law that is refused is an answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs and laws")
    parser.add_argument("--table", type=Path, required=True, help="CSV file for the table of the runs")
    parser.add_argument("--seconds", type=float, required=True, help="time for all of it")
    parser.add_argument("--text", nargs="+", help="files or patterns; the standard library if not given")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU")
    args = parser.parse_args()
    words = ["+experiment=gpu_ladder", f"runtime.root={args.runs}", *(TINY if args.tiny else [])]
    if args.text:
        words += ["data=text", f"data.files=[{','.join(args.text)}]"]
    horizons = [tokens // (256 if args.tiny else 1) for tokens in HORIZONS]
    start, speeds = time.monotonic(), []
    for number in range(FIRST, len(horizons) + 1):
        new = horizons if number == FIRST else horizons[:number]
        new = new[:number] if number == FIRST else new[-1:]
        left = args.seconds - TABLE_SECONDS - (time.monotonic() - start)
        if speeds and sum(new) / max(speeds) > left:
            print(f"{new[0]} tokens do not fit into the {left:.0f} s that are left", flush=True)
            break
        begin = time.monotonic()
        grids = [
            f"sweep.blocks.{name}.grid={{scale.tokens:[{','.join(map(str, new))}]}}" for name in OPTIMIZERS
        ]
        if call(SWEEP, "run", *words, *grids):
            return 1
        speeds.append(sum(new) / (time.monotonic() - begin))
        print(f"{10 * speeds[-1]:,.0f} tokens per second over all runs", flush=True)
    table = args.runs / "runs.parquet"
    if call(SWEEP, "collect", args.runs, "-o", table):
        return 1
    args.table.write_bytes(table.with_suffix(".csv").read_bytes())
    call(LAW, "check", table)
    for name in OPTIMIZERS:
        law = args.runs / f"law_{name}.json"
        law.unlink(missing_ok=True)
        call(LAW, "fit", table, "--by", "tokens", "--where", f"optimizer={name}", "-o", law)
    return 0


if __name__ == "__main__":
    sys.exit(main())
