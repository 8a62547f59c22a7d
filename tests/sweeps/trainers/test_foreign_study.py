"""The study of reports/foreign in small: the Trainer of transformers under the sweep, up to a law."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from hyperp.analysis import fit_law
from hyperp.analysis.errors import Refusal
from hyperp.sweeps import collect, make_plan, run
from hyperp.sweeps.plan.command_run import CommandRun
from tests.paths import ROOT

pytestmark = pytest.mark.slow
STUDY = ROOT / "reports" / "foreign"
RATES = [2**-8, 2**-6, 2**-4]
TOKENS = [4096, 8192, 16384]


def small_study(root: Path, **grid: Sequence[float]) -> list[str]:
    blocks = {"small": {"grid": {f"values.{name}": list(values) for name, values in grid.items()}}}
    return [
        f"hydra.searchpath=[file://{STUDY / 'conf'}]",
        "+experiment=llama",
        "~sweep.blocks",
        f"+sweep.blocks={blocks}".replace("'", ""),
        f"trainer.cwd={STUDY}",
        f"runtime.root={root}",
        "launcher.workers=2",
    ]


def answer_of(table: Path) -> pd.DataFrame:
    """The rate at twice the longest budget, or the runs that a refusal asks for."""
    try:
        return fit_law(table, by="tokens").predict(tokens=[2 * TOKENS[-1]])
    except Refusal as refusal:  # so small a grid may leave its optima at the edges
        return refusal.next_points


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("accelerate", reason="the extra foreign is not installed")
    return pytest.importorskip("transformers", reason="the extra foreign is not installed")


def test_nine_runs_of_transformers_make_a_table_that_a_law_reads(transformers, tmp_path):
    words = small_study(tmp_path / "runs", tokens=TOKENS, lr=RATES)
    plan = make_plan(words)
    assert len(plan.points) == 9
    assert [one.status for one in run(plan)] == ["finished"] * 9

    table = pd.read_parquet(collect(plan.root).table)
    assert sorted(table["lr"].unique()) == RATES
    assert sorted(table["tokens"].unique()) == TOKENS
    assert table["steps"].tolist() == (table["tokens"] / 512).tolist()
    assert set(table["width"]) == {32}
    assert set(table["trainer"]) == {"command"}
    assert set(table["optimizer"]) == {"adamw"}
    assert table["loss"].between(2, 5.7).all()  # an even guess among 256 bytes has 5.55 nats
    assert table["setting"].nunique() == 1
    longest, shortest = (table.query("tokens == @t")["loss"].min() for t in (16384, 4096))
    assert longest < shortest

    answer = answer_of(collect(plan.root).table)
    assert (answer["lr"] > 0).all()
    if "low" in answer:
        assert (answer["low"] < answer["lr"]).all()
        assert (answer["lr"] < answer["high"]).all()
    else:
        assert set(answer["tokens"]) <= {4096, 8192, 16384}
    before = {path: path.stat().st_mtime_ns for path in plan.root.glob("*/record.json")}
    run(make_plan(words))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_parameters_of_the_table_are_those_of_the_model(transformers, tmp_path):
    sys.path.insert(0, str(STUDY))
    try:
        from train_llama import make_model  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(STUDY))
    for width in (32, 64):
        words = small_study(tmp_path / "runs", width=[width])
        (point,) = make_plan(words).points
        assert isinstance(point.config, CommandRun)
        expected = sum(parameter.numel() for parameter in make_model(width).parameters())
        assert point.config.values["parameters"] == expected
