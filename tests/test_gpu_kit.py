"""The GPU kit itself, in tiny on this machine's CPU."""

import json
import subprocess
import sys

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.slow


def test_every_part_of_the_kit_ends_and_is_in_the_table_of_aims(tmp_path):
    words = ["--tiny", "--out", tmp_path / "out", "--runs", tmp_path / "runs", "--patience", "4"]
    subprocess.run([sys.executable, ROOT / "tests" / "gpu" / "kit.py", *words], check=True)
    parts = json.loads((tmp_path / "out" / "parts.json").read_text())
    assert {name: part["ended"] for name, part in parts.items()} == dict.fromkeys(
        ("tests", "optimizers", "model", "ladder"), "done"
    )
    aims = (tmp_path / "out" / "aims.md").read_text()
    for line in ("muonh's share of a step", "SSO / MuonSphere", "sso: token exponent"):
        assert line in aims
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_a_part_that_takes_too_long_is_ended_and_the_others_still_run(tmp_path):
    words = [
        "--tiny",
        "--out",
        tmp_path,
        "--runs",
        tmp_path / "runs",
        "--patience",
        "0.001",
        "--parts",
        "tests",
        "model",
    ]
    code = subprocess.run([sys.executable, ROOT / "tests" / "gpu" / "kit.py", *words], check=False).returncode
    parts = json.loads((tmp_path / "parts.json").read_text())
    assert code == 1
    assert all(part["ended"].startswith("out of its 0 s") for part in parts.values()), parts
    assert list(parts) == ["tests", "model"]
