"""An experiment of a foreign trainer as a file, for tests of the orchestrator."""

import sys
from pathlib import Path
from typing import Any

import yaml

SCRIPT = Path(__file__).with_name("foreign_trainer.py")
ARGUMENTS = ("lr", "steps", "seed", "width", "pause", "fault")


def section(**changes: Any) -> dict[str, Any]:
    """A valid `trainer` section, changed."""
    return {
        "command": [
            sys.executable,
            str(SCRIPT),
            *(f"--{name}={{{name}}}" for name in ARGUMENTS),
            "--out={run_dir}",
        ],
        "context": {"optimizer": "sgd", "schedule": "constant", "data": "noise", "metric": "mse"},
        "values": {
            "lr": 0.1, "seed": 0, "width": 8, "tokens": 1280, "batch_tokens": 64, "pause": 0.0, "fault": "",
        },
        "derive": {"steps": "tokens / batch_tokens", "flops": "6 * width * tokens"},
        "result": {"loss": {"file": "{run_dir}/metrics.jsonl", "key": "val_loss"}},
        "progress": {"pattern": r"step (?P<step>\d+)/(?P<steps>\d+)"},
        "resume": {"when": "{run_dir}/checkpoint.pth", "arguments": ["--resume={run_dir}"]},
        "stop": {"signal": "SIGTERM", "grace": 2.0},
    } | changes  # fmt: skip


def write_experiment(folder: Path, blocks: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Write an experiment `foreign` below `folder`; returns the overrides that choose it."""
    path = folder / "conf" / "experiment" / "foreign.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "defaults": [{"override /trainer": "command"}],
        "trainer": section(**changes),
        "runtime": {"root": str(folder / "runs")},
    }
    if blocks is not None:
        content["sweep"] = {"blocks": blocks}
    path.write_text("# @package _global_\n" + yaml.safe_dump(content, sort_keys=False))
    return [f"hydra.searchpath=[file://{folder / 'conf'}]", "+experiment=foreign"]
