"""The Python API: what sweeps/README.md shows works, and importing it costs nothing."""

import re
import subprocess
import sys

import pandas as pd
import pytest

from hyperp import sweeps
from hyperp.sweeps import cancel, collect, make_plan, run, status, submit
from tests.paths import ROOT
from tests.tiny import TINY


def test_the_example_of_the_readme_runs_as_a_script(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "sweeps" / "README.md").read_text(), re.DOTALL)
    (tmp_path / "sweep.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "sweep.py"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    lines = [line for line in done.stdout.splitlines() if " of the work" not in line]
    assert re.fullmatch(r"4 runs, \d\.\de\+\d+ FLOPs", lines[0])
    assert [line.split()[1:] for line in lines[1:5]] == [["finished", "None"]] * 4
    assert lines[5:] == [
        "submitted 0 of 4 runs (4 finished before); runs/tiny",
        "cancelled 0 runs: none is in the background or in Slurm; runs/tiny",
    ]
    assert lines[5] in code
    table = pd.read_parquet(tmp_path / "runs" / "tiny" / "runs.parquet")
    assert sorted(zip(table["tokens"], table["base_lr"], strict=True)) == [
        (tokens, lr) for tokens in (512, 1024) for lr in (0.01, 0.02)
    ]


def test_a_failed_run_is_a_status_and_bad_input_an_error(tmp_path):
    plan = make_plan([*TINY, f"runtime.root={tmp_path}", "scale.tokens=512", "seed=0,1"])
    blocked, good = plan.points
    blocked.run_dir.write_text("a file where the run's folder should be")
    runs = {one.run_id: one for one in run(plan)}
    assert (runs[blocked.run_id].status, runs[good.run_id].status) == ("failed", "finished")
    assert "FileExistsError" in str(runs[blocked.run_id].reason)
    made = collect(str(tmp_path))
    assert made.table == tmp_path / "runs.parquet"
    assert sorted(one.status for one in made.runs) == ["failed", "finished"]
    with pytest.raises(ValueError, match=r"ROOT must .*nowhere"):
        status("nowhere")
    with pytest.raises(ValueError, match=r"ROOT must .*nowhere"):
        cancel("nowhere")
    with pytest.raises(ValueError, match=r"launcher\.name.*'moon'"):
        submit(make_plan([*TINY, "launcher.name=moon"]))


def test_one_override_may_be_given_alone():
    (point,) = make_plan("seed=3").points
    assert point.own.seed == 3


def test_the_package_lists_its_functions_and_imports_nothing():
    assert dir(sweeps) == sweeps.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sweeps.nothing
    code = "import sys; known = set(sys.modules); import hyperp.sweeps; print(*set(sys.modules) - known)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert new == {"hyperp", "hyperp.sweeps"}
