"""What monitors saw of many runs: columns of the table, and the table by step beside it."""

import json
import math

import pandas as pd
import pytest

from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.table.runs import collect
from hyperp.training.train import train

TINY = (
    "scale.width=16",
    "scale.depth=2",
    "scale.tokens=512",
    "scale.batch_tokens=64",
    "model.context=32",
    "model.head_size=8",
    "data.held_out_tokens=64",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.log_every=4",
)
MOE = ("model=moe", "model.context=32", "model.head_size=8", "scale.granularity=4", "scale.sparsity=2")


def refuse(text):
    raise AssertionError(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A root with the records of a dense run, one of experts, and one that was not monitored."""
    root = tmp_path_factory.mktemp("runs")
    records = {}
    for name, words in (
        ("dense", ("runtime.monitor_every=4",)),
        ("experts", ("runtime.monitor_every=4", *MOE)),
        ("unseen", ("runtime.monitor_every=0", "seed=1")),
    ):
        (point,) = make_plan([*TINY, *words, f"runtime.root={root}"]).points
        records[name] = train(point.own, point.run_dir)
    collect(root, root / "runs.parquet", refuse)
    return root, records


def logged(root, one):
    lines = map(json.loads, (root / one.run_id / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["stability"] for line in lines if "stability" in line}


def test_the_table_has_the_largest_values_of_every_run(runs):
    root, records = runs
    frame = pd.read_parquet(root / "runs.parquet").set_index("run_id")
    dense, experts, unseen = (frame.loc[records[name].run_id] for name in ("dense", "experts", "unseen"))
    rows = logged(root, records["dense"]).values()
    assert dense.attention_z_max == max(z for row in rows for z in row["attention_z"])
    assert dense.logit_max == max(row["logit_max"] for row in rows)
    assert dense.residual_rms_max == max(r for row in rows for r in row["residual_rms"])
    assert dense.norm_over_radius_max == pytest.approx(1.0, rel=1e-5)
    outliers = [o for row in rows for key, values in row.items() if key.endswith("_outliers") for o in values]
    assert dense.outlier_share == max(outliers)
    assert dense.monitor_looks == len(rows) == 2
    assert math.isnan(dense.router_z_max)
    assert math.isnan(dense.max_vio)
    rows = logged(root, records["experts"]).values()
    assert experts.router_z_max == max(z for row in rows for z in row["router_z"])
    assert experts.max_vio == max(records["experts"].max_vio["mean"])
    assert math.isnan(unseen.attention_z_max)


def test_the_table_by_step_holds_every_logged_value_but_those_of_single_matrices(runs):
    root, records = runs
    frame = pd.read_parquet(root / "runs.metrics.parquet")
    assert set(frame.run_id) == {records["dense"].run_id, records["experts"].run_id}
    for name in ("dense", "experts"):
        own = frame[frame.run_id == records[name].run_id]
        for step, row in logged(root, records[name]).items():
            here = own[own.step == step]
            for layer, value in enumerate(row["attention_z"]):
                (found,) = here[(here.quantity == "attention_z") & (here.layer == layer)].value
                assert found == value
            for role, ends in row["norm_over_radius"].items():
                (found,) = here[(here.quantity == "norm_over_radius_max") & (here.role == role)].value
                assert found == ends["max"]
            for role, value in row["update_rms"].items():
                (found,) = here[(here.quantity == "update_rms") & (here.role == role)].value
                assert found == value
            (found,) = here[here.quantity == "logit_max"].value
            assert found == row["logit_max"]
    assert "matrices" not in set(frame.quantity)
    vio = frame[frame.quantity == "max_vio"]
    assert set(vio.run_id) == {records["experts"].run_id}
    assert set(vio.layer) == {0, 1}


def test_what_is_not_finite_stays_so_and_half_a_line_is_left_out(runs, tmp_path):
    root, records = runs
    (tmp_path / records["dense"].run_id).mkdir()
    for name in ("record.json", "metrics.jsonl"):
        text = (root / records["dense"].run_id / name).read_text()
        if name == "metrics.jsonl":
            text = text.replace('"logit_max": ', '"logit_max": "nan", "was": ') + '{"step": 9, "stab'
        (tmp_path / records["dense"].run_id / name).write_text(text)
    collect(tmp_path, tmp_path / "runs.parquet", refuse)
    frame = pd.read_parquet(tmp_path / "runs.metrics.parquet")
    assert frame[frame.quantity == "logit_max"].value.isna().all()
    assert sorted(set(frame.step)) == [4, 8]


def test_without_monitored_runs_there_is_no_table_by_step_and_none_from_before(runs, tmp_path):
    root, records = runs
    (tmp_path / records["unseen"].run_id).symlink_to(root / records["unseen"].run_id)
    (tmp_path / "runs.metrics.parquet").write_text("of an earlier sweep")
    collect(tmp_path, tmp_path / "runs.parquet", refuse)
    assert (tmp_path / "runs.parquet").is_file()
    assert not (tmp_path / "runs.metrics.parquet").exists()
