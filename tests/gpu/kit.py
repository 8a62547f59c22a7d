"""Prove the project on one CUDA device in about ten minutes, and write what was measured, part by part.

    python tests/gpu/kit.py --out reports/gpu              # `make gpu` does this
    python tests/gpu/kit.py --out /tmp/gpu --tiny          # the same parts on a CPU: does the kit work?
    python tests/gpu/kit.py --out reports/gpu --parts tests optimizers

Every part is a process of its own with a time limit, so that one that hangs or fails leaves the others their
time. What a part prints goes to OUT/log.txt as it comes, and its figures to a JSON file. OUT/aims.md, a table
of aims that are met or not, is written again after every part. Nothing is fetched from a network. The parts:

    tests       tests/gpu: every optimizer against itself on a CPU, no waiting, capture, compilation, experts
    optimizers  bench_optim.py: the steps of all optimizers beside those of torch, also on a depth-12 model
    model       bench_throughput.py: tokens per second, share of the peak, the optimizer's share of a step
    ladder      ladder.py: a sweep of +experiment=gpu_ladder, and its token exponent with an interval
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
LADDER_SECONDS = 250
PUBLISHED_EXPONENT = 0.32  # arXiv 2603.28743

Commands = list[list[str]]


@dataclass(frozen=True)
class Part:
    """A part of the kit: its time limit, its commands, and those of a trial on a CPU."""

    seconds: int
    commands: Callable[[argparse.Namespace], Commands]


def python(*words: object) -> list[str]:
    """A command of this interpreter that imports the installed hyperp, not the folder of that name here."""
    return [sys.executable, "-P", *map(str, words)]


def test_commands(args: argparse.Namespace) -> Commands:
    """The tests; without a device they are collected and skipped."""
    options = ["-q", "-o", "pythonpath=", "-p", "no:cacheprovider", "--maxfail=20", "--durations=8"]
    options += ["-n", "4"] if find_spec("xdist") else []
    return [python("-m", "pytest", *options, ROOT / "tests" / "gpu")]


def optimizer_commands(args: argparse.Namespace) -> Commands:
    """Square and rectangular matrices beside the peers', then all hidden matrices of one model."""
    bench, out = BENCHMARKS / "bench_optim.py", args.out
    if args.tiny:
        tiny = ("--device", "cpu", "--rounds", 2)
        return [python(bench, *tiny, "--quick", "--out", out / "optimizers.json")]
    cuda = ("--device", "cuda")
    return [
        python(bench, *cuda, "--model", 12, "--rounds", 5, "--out", out / "optimizers_depth12.json"),
        python(bench, *cuda, "--rounds", 5, "--out", out / "optimizers.json"),
    ]


def model_commands(args: argparse.Namespace) -> Commands:
    """Dense models of depth 12 and 8, and one with experts (S = 8, k = 8)."""
    bench = (BENCHMARKS / "bench_throughput.py", "--out", args.out)
    if args.tiny:
        tiny = ("--device", "cpu", "--width", 256, "--context", 128, "--batch", 1024)
        return [
            python(*bench, *tiny, "--depth", 2, "--name", "dense"),
            python(*bench, *tiny, "--depth", 2, "--granularity", 2, "--sparsity", 2, "--name", "experts"),
        ]
    return [
        python(*bench, "--compile", "--depth", 12, 8, "--name", "dense"),
        python(*bench, "--compile", "--depth", 8, "--granularity", 8, "--sparsity", 8,
               "--optimizers", "muonh", "--name", "experts"),
    ]  # fmt: skip


def ladder_commands(args: argparse.Namespace) -> Commands:
    """The token ladder and its laws."""
    words = [
        "--runs",
        args.runs,
        "--table",
        args.out / "ladder_runs.csv",
        "--seconds",
        LADDER_SECONDS * args.patience,
    ]
    words += [*(["--text", *args.text] if args.text else []), *(["--tiny"] if args.tiny else [])]
    return [python(ROOT / "tests" / "gpu" / "ladder.py", *words)]


PARTS = {
    "tests": Part(120, test_commands),
    "optimizers": Part(80, optimizer_commands),
    "model": Part(240, model_commands),
    "ladder": Part(LADDER_SECONDS + 10, ladder_commands),
}


def run_part(name: str, args: argparse.Namespace) -> str:
    """Run the commands of a part until one fails or the time is up. Returns how that ended."""
    part = PARTS[name]
    deadline = time.monotonic() + part.seconds * args.patience
    path = [os.environ.get("PYTHONPATH"), str(ROOT)]  # the tests share modules of this folder
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    with (args.out / "log.txt").open("a") as log:
        for command in part.commands(args):
            left = deadline - time.monotonic()
            head = f"== {name}: {' '.join(command[2:])}  ({left:.0f} s left)\n"
            log.write(head)
            print(head, end="", flush=True)
            try:
                process = subprocess.Popen(
                    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    start_new_session=True, env=environment,
                )  # fmt: skip
                code = follow(process, log, deadline)
            except TimeoutError:
                return f"out of its {part.seconds * args.patience:.0f} s in {Path(command[2]).name}"
            if code:
                return f"exit code {code}"
    return "done"


def follow(process: "subprocess.Popen[str]", log: Any, deadline: float) -> int:
    """Copy what a process prints to the log and the terminal; kill its whole session when the time is up."""

    def copy() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            print(line, end="", flush=True)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        raise TimeoutError from None
    finally:
        thread.join(timeout=5)
    return code


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None without one."""
    return json.loads(path.read_text()) if path.exists() else None


Row = tuple[str, str, str, str]  # what, its aim, what was measured, whether the aim is met


def aim_row(what: str, value: float | None, least: float | None = None, most: float | None = None) -> Row:
    """A share with its aim, at least or at most; without one if both are None."""
    aim = f"at least {least:.0%}" if least else f"at most {most:.0%}" if most else "-"
    shown = "not known" if value is None else f"{value:.1%}"
    if value is None or aim == "-":
        return what, aim, shown, "-"
    met = value >= least if least else value <= (most or 0)
    return what, aim, shown, "yes" if met else "**no**"


def model_rows(out: Path) -> list[Row]:
    """Shares of the peak and of the step, of dense models and of those with experts."""
    rows = []
    for file, least in (("dense", 0.50), ("experts", 0.35)):
        for row in (read_json(out / f"{file}.json") or {"rows": []})["rows"]:
            what, optimizer = f"depth {row['depth']}", row["optimizer"]
            if file == "experts":
                what += f", k = {row['granularity']}, S = {row['sparsity']}"
            aimed = file == "experts" or row["depth"] >= 12
            share = row["model_share_of_peak"]
            rows.append(aim_row(f"{what}, {optimizer}: model's share of the peak", share, least * aimed))
            most = {"muonh": 0.05, "sso": 0.08}.get(optimizer)
            rows.append(aim_row(f"{what}: {optimizer}'s share of a step", row["optimizer_share"], most=most))
    return rows


def optimizer_rows(out: Path) -> list[Row]:
    """Ratios of step times."""
    rows = []
    aims = {"MuonH / torch Muon": 0.9, "Muon / torch Muon": 0.9, "SSO / MuonSphere": 1.7}
    for file in ("optimizers_depth12", "optimizers"):
        for label, figures in (read_json(out / f"{file}.json") or {}).items():
            for name, aim in aims.items() if isinstance(figures, dict) else ():
                ratio = figures["ratios"][name]
                measured = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['largest']:.2f})"
                met = "yes" if ratio["median"] <= aim else "**no**"
                rows.append((f"{label}: {name}", f"at most {aim}", measured, met))
    return rows


def ladder_rows(out: Path) -> list[Row]:
    """The token exponents; a law that the runs cannot tell is refused."""
    table, aim = out / "ladder_runs.csv", f"published: {PUBLISHED_EXPONENT}"
    optimizers = ("muonh", "sso") if table.exists() else ()
    return [(f"{name}: token exponent, 95% interval", aim, *exponent(table, name)) for name in optimizers]


def exponent(table: Path, optimizer: str) -> tuple[str, str]:
    """The token exponent of the ladder with its interval, and whether the published one lies in it."""
    from hyperp.analysis import Refusal, fit_law

    try:
        law = fit_law(table, by="tokens", where={"optimizer": optimizer})
    except Refusal as refusal:
        return f"refused: {refusal}", "**no**"
    term = law.exponents["tokens"]
    low, high = sorted((-term.low, -term.high))
    inside = "yes" if low <= PUBLISHED_EXPONENT <= high else "outside"
    return f"{-term.value:.2f} ({low:.2f} to {high:.2f})", inside


def write_aims(args: argparse.Namespace) -> None:
    """Write OUT/aims.md anew, with what earlier calls measured."""
    lines = ["| part | ended | took | on |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {part['ended']} | {part['took']} | {part['device']} |"
        for name, part in (read_json(args.out / "parts.json") or {}).items()
    ]
    rows = [*model_rows(args.out), *optimizer_rows(args.out), *ladder_rows(args.out)]
    lines += ["", "| what | aim | measured | met |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    (args.out / "aims.md").write_text("\n".join(lines) + "\n")


def describe_device() -> str:
    """The device, driver and torch, in one line."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}"


def main() -> int:
    """Run the parts; exit 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for what is measured")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--runs", type=Path, help="folder for the ladder's runs; runs/gpu_ladder if not given"
    )
    parser.add_argument(
        "--text", nargs="+", help="files or patterns for the ladder; the standard library if not given"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--patience", type=float, default=1.0, help="multiply every time limit")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    args.runs = (args.runs or ROOT / "runs" / "gpu_ladder").resolve()
    device, noted = describe_device(), args.out / "parts.json"
    print(device, flush=True)
    for name in args.parts:
        start = time.monotonic()
        how = run_part(name, args)
        took = f"{time.monotonic() - start:.0f} s"
        ended = (read_json(noted) or {}) | {name: {"ended": how, "took": took, "device": device}}
        noted.write_text(json.dumps(ended, indent=1))
        write_aims(args)
    write_aims(args)
    shutil.copyfileobj((args.out / "aims.md").open(), sys.stdout)
    parts = read_json(noted) or {}
    return int(not all(parts[name]["ended"] == "done" for name in args.parts))


if __name__ == "__main__":
    sys.exit(main())
