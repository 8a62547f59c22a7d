"""The table of a sweep: every run is a row, whatever became of it."""

import json
import math
import time
from dataclasses import asdict

import pandas as pd
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from hyperp.rundir import record
from hyperp.rundir.record import METRIC
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.plan.run_config import setting_hash
from hyperp.sweeps.printing import print_status
from hyperp.sweeps.runs.status import run_state, survey_runs
from hyperp.sweeps.table.runs import collect
from hyperp.training.train import base_record

COLUMNS = [
    "run_id",
    "status",
    "reason",
    "cause",
    "block",
    "optimizer",
    "parametrization",
    "schedule",
    "data",
    "metric",
    "setting",
    "width",
    "depth",
    "tokens",
    "batch_tokens",
    "granularity",
    "sparsity",
    "seed",
    "lr",
    "base_lr",
    "loss",
    "bits_per_byte",
    "train_loss",
    "steps",
    "parameters",
    "flops",
    "seconds",
    "tokens_per_second",
    "attention_z_max",
    "router_z_max",
    "residual_rms_max",
    "outlier_share",
    "logit_max",
    "norm_over_radius_max",
    "max_vio",
    "monitor_looks",
    "version",
]
INTEGERS = ("width", "depth", "tokens", "batch_tokens", "granularity", "sparsity", "seed")


def refuse(text):
    raise AssertionError(text)


@pytest.fixture
def sweep(tmp_path):
    """Four planned runs: finished, diverged, failed, not begun."""
    root = tmp_path / "root"
    plan = make_plan([f"runtime.root={root}", "+sweep.blocks.b.grid={seed:[0,1],scale.tokens:[65536,32768]}"])
    planfile.write_plan(plan)
    done, diverged, failed, _ = plan.points
    numbers = {
        "loss": 3.25,
        "bits_per_byte": 3.25 / math.log(2),
        "train_loss": 3.5,
        "steps": 128,
        "flops": 1e12,
    }
    record.save(
        base_record(done.own, status="finished", parameters=9, seconds=0.5, tokens_per_second=1e5, **numbers),
        done.run_dir,
    )
    record.save(base_record(diverged.own, status="diverged", reason="loss, then nothing"), diverged.run_dir)
    record.save(
        base_record(failed.own, status="failed", reason="worker killed by signal 9", cause="out_of_memory"),
        failed.run_dir,
    )
    return root, plan


def read(path):
    return pd.read_parquet(path).set_index("run_id", drop=False)


def test_one_row_a_planned_run_whatever_its_status(sweep):
    root, plan = sweep
    collect(root, root / "runs.parquet", refuse)
    frame = read(root / "runs.parquet")
    assert list(frame.columns) == COLUMNS
    assert [frame.status[p.run_id] for p in plan.points] == ["finished", "diverged", "failed", "planned"]
    assert all(frame[name].dtype == "int64" for name in INTEGERS)
    assert all(
        frame[name].dtype == "float64" for name in ("lr", "base_lr", "loss", "bits_per_byte", "train_loss")
    )
    assert set(frame.block) == {"b"}
    assert set(frame.metric) == {METRIC}
    done = frame.loc[plan.points[0].run_id]
    assert (done.loss, done.steps, done.parameters) == (3.25, 128, 9)
    assert frame.loss.notna().sum() == 1
    for point in plan.points:
        line = frame.loc[point.run_id]
        assert {name: line[name] for name in asdict(point.config.scale)} == asdict(point.config.scale)
        assert (line.seed, line.base_lr, line.lr) == (point.config.seed, point.config.base_lr, point.lr)
        assert (line.optimizer, line.parametrization, line.schedule) == ("muonh", "hyperp", "linear")


def test_planned_and_recorded_rows_agree_on_what_the_run_is(sweep):
    """The row of a run that has not begun says what the row of its record will say."""
    root, plan = sweep
    waiting = plan.points[3]
    collect(root, root / "before.parquet", refuse)
    record.save(base_record(waiting.config, status="failed", reason="x"), waiting.run_dir)
    collect(root, root / "after.parquet", refuse)
    what = [n for n in COLUMNS[: COLUMNS.index("loss")] if n not in ("status", "reason", "cause")] + [
        "version"
    ]
    before, after = (read(root / name).loc[waiting.run_id] for name in ("before.parquet", "after.parquet"))
    pd.testing.assert_series_equal(before[what], after[what])


def test_the_same_records_give_the_same_bytes_in_one_order(sweep, tmp_path):
    root, _ = sweep
    collect(root, root / "a.parquet", refuse)
    plan = json.loads((root / "plan.json").read_text())
    plan["points"].reverse()
    (root / "plan.json").write_text(json.dumps(plan))
    collect(root, root / "b.parquet", refuse)
    for suffix in (".parquet", ".csv"):
        assert (root / f"a{suffix}").read_bytes() == (root / f"b{suffix}").read_bytes()
    frame = pd.read_parquet(root / "a.parquet")
    assert list(zip(frame.tokens, frame.seed, strict=True)) == [
        (32768, 0),
        (32768, 1),
        (65536, 0),
        (65536, 1),
    ]


def test_the_csv_holds_the_same_table(sweep):
    root, _ = sweep
    collect(root, root / "runs.parquet", refuse)
    both = pd.read_parquet(root / "runs.parquet"), pd.read_csv(root / "runs.csv", dtype={"run_id": str})
    parquet, text = (frame.astype(object).where(frame.notna(), None) for frame in both)
    assert parquet.to_dict("records") == text.to_dict("records")
    assert "loss, then nothing" in set(text.reason)


def test_runs_that_no_plan_names_are_rows_too(sweep):
    root, _ = sweep
    other = make_plan([f"runtime.root={root}", "scale.depth=3"]).points[0]
    record.save(base_record(other.own, status="diverged", reason="why"), other.run_dir)
    runs = collect(root, root / "runs.parquet", refuse).runs
    line = read(root / "runs.parquet").loc[other.run_id]
    assert len(runs) == 5
    assert (line.status, line.depth) == ("diverged", 3)
    assert read(root / "runs.parquet").block.isna()[other.run_id]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"schema": 99}', '{"schema": 1}', "\ufffd\x00"])
def test_a_damaged_record_is_named_and_a_failed_row(sweep, damage):
    root, plan = sweep
    path = plan.points[0].run_dir / "record.json"
    path.write_text(damage)
    named = []
    collect(root, root / "runs.parquet", named.append)
    line = read(root / "runs.parquet").loc[plan.points[0].run_id]
    assert line.status == "failed"
    assert line.reason.startswith("damaged record: ")
    assert math.isnan(line.loss)
    assert line.tokens == plan.points[0].config.scale.tokens
    assert len(named) == 1
    assert str(path) in named[0]


def test_a_record_in_the_folder_of_another_run_is_damaged(sweep):
    root, plan = sweep
    text = (plan.points[0].run_dir / "record.json").read_text()
    (plan.points[1].run_dir / "record.json").write_text(text)
    named = []
    collect(root, root / "runs.parquet", named.append)
    assert read(root / "runs.parquet").status[plan.points[1].run_id] == "failed"
    assert f"run_id must be {plan.points[1].run_id}, got '{plan.points[0].run_id}'" in named[0]


def test_a_damaged_record_without_a_plan_is_a_row_from_the_runs_own_configuration(sweep):
    root, _ = sweep
    point = make_plan([f"runtime.root={root}", "scale.depth=3"]).points[0]
    point.run_dir.mkdir()
    (point.run_dir / "record.json").write_text("{")
    named = []
    collect(root, root / "runs.parquet", named.append)
    assert point.run_id not in set(read(root / "runs.parquet").run_id)
    assert "has no row" in named[1]
    OmegaConf.save(OmegaConf.create(asdict(point.config)), point.run_dir / "config.yaml")
    collect(root, root / "runs.parquet", named.append)
    line = read(root / "runs.parquet").loc[point.run_id]
    assert (line.status, line.depth, line.lr) == ("failed", 3, point.lr)


def test_columns_that_are_always_known_may_not_be_null(sweep):
    root, _ = sweep
    collect(root, root / "runs.parquet", refuse)
    schema = pq.read_schema(root / "runs.parquet")
    required = {field.name for field in schema if not field.nullable}
    assert required == set(COLUMNS[: COLUMNS.index("loss")]) - {"reason", "cause", "block"} | {"version"}


def test_the_cause_of_a_failure_is_a_column_and_shown_beside_the_status(sweep, capsys):
    root, plan = sweep
    collect(root, root / "runs.parquet", refuse)
    failed = plan.points[2].run_id
    causes = read(root / "runs.parquet")["cause"]
    assert causes[failed] == "out_of_memory"
    assert causes.drop(failed).isna().all()
    print_status(survey_runs(root), survey_runs(root))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if failed in line]
    assert " failed: out of memory " in line


def test_another_suffix_is_refused(sweep):
    root, _ = sweep
    with pytest.raises(ValueError, match=r"-o must .*\.parquet, got runs\.csv"):
        collect(root, root.__class__("runs.csv"), refuse)


def test_heartbeats_tell_running_from_stopped(sweep):
    root, plan = sweep
    finished, _, failed, waiting = plan.points
    beat = {"step": 64, "steps": 128, "tokens_per_second": 1e5, "host": "here"}
    for point in (finished, failed, waiting):  # failed before, and tried again now
        record.write_json(point.run_dir / "heartbeat.json", {**beat, "time": time.time()})
    states = {run.run_id: run for run in survey_runs(root)}
    assert states[finished.run_id].status == "finished"
    assert states[failed.run_id].status == "running"
    assert (states[waiting.run_id].status, states[waiting.run_id].step) == ("running", 64)
    for point in (failed, waiting):
        record.write_json(point.run_dir / "heartbeat.json", {**beat, "time": time.time() - 61})
    states = {run.run_id: run for run in survey_runs(root)}
    assert (states[failed.run_id].status, states[failed.run_id].reason) == (
        "failed",
        "worker killed by signal 9",
    )
    stopped = states[waiting.run_id]
    assert (stopped.status, stopped.reason) == ("planned", "stopped at step 64 of 128")
    (waiting.run_dir / "heartbeat.json").write_text("{")
    assert run_state(root, waiting.run_id, None).status == "planned"


def test_settings_tell_apart_what_slices_must_not_mix(tmp_path):
    """Equal where runs differ in scale, rate and seed alone, or in how they are done; different otherwise."""
    root = f"runtime.root={tmp_path}"
    same = [[], ["seed=1"], ["base_lr=0.1"], ["scale.depth=3", "scale.tokens=65536"], ["runtime.threads=2"]]
    other = [
        ["optim.options.muonh.momentum=0.9"],
        ["model.mlp_ratio=2"],
        ["optim.clip=0"],
        ["schedule.final=0"],
    ]
    configs = [asdict(make_plan([root, *words]).points[0].config) for words in [*same, *other]]
    found = [setting_hash(config) for config in configs]
    assert len(set(found[: len(same)])) == 1
    assert len(set(found)) == 1 + len(other)
    older = {key: value for key, value in configs[0].items() if key not in ("precision", "runtime")}
    assert setting_hash(older) == found[0]
    assert setting_hash(older | {"retired": 1}) not in found


def test_planned_and_recorded_runs_have_their_setting_in_both_files(sweep):
    root, plan = sweep
    collect(root, root / "runs.parquet", refuse)
    expected = {setting_hash(asdict(plan.points[0].config))}
    assert set(read(root / "runs.parquet").setting) == expected
    assert set(pd.read_csv(root / "runs.csv", dtype={"setting": str}).setting) == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scale", {}, "width must be given"),
        ("scale", None, "scale"),
        ("scale", {"width": 32, "depth": 2, "tokens": 65536, "batch_tokens": "512"}, "batch_tokens"),
        ("lr", "0.1", "lr"),
        ("seed", None, "seed"),
        ("loss", "3.25", "loss"),
        ("loss", math.nan, "loss must be a finite number, got nan"),
        ("optimizer", None, "optimizer"),
        ("parameters", 1.5, "parameters"),
        ("config", [], "config"),
    ],
)
def test_a_wrong_field_of_a_record_is_named_and_costs_no_other_row(sweep, key, value, message):
    root, plan = sweep
    path = plan.points[0].run_dir / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    named = []
    collect(root, root / "runs.parquet", named.append)
    frame = read(root / "runs.parquet")
    line = frame.loc[plan.points[0].run_id]
    assert (len(frame), len(named)) == (4, 1)
    assert line.status == "failed"
    assert message in line.reason
    assert message in named[0]
    print_status(survey_runs(root), survey_runs(root))


def test_folders_that_cannot_be_read_are_failed_rows(sweep):
    root, plan = sweep
    waiting, done = plan.points[3], plan.points[0]
    waiting.run_dir.write_text("a file where the run's folder should be")
    (done.run_dir / "record.json").unlink()
    (done.run_dir / "record.json").mkdir()
    named = []
    collect(root, root / "runs.parquet", named.append)
    frame = read(root / "runs.parquet")
    assert [frame.status[point.run_id] for point in (waiting, done)] == ["failed", "failed"]
    assert "Not a directory" in frame.reason[waiting.run_id]
    assert "Is a directory" in frame.reason[done.run_id]
    assert len(named) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.yaml"),
        ("- 1", "must be a mapping"),
        ("seed: 0\n", "scale must be given"),
        ("scale: 3\nbase_lr: 0.1\n", "scale"),
        ("a: ${b\n", "config.yaml"),
        ("\ufffd\x00", "config.yaml"),
        (None, "config.yaml"),
    ],
)
def test_a_config_that_cannot_be_read_either_costs_its_row_alone(sweep, text, message):
    root, _ = sweep
    run_dir = root / "0123456789ab"
    run_dir.mkdir()
    (run_dir / "record.json").write_text("{")
    if text is None:
        (run_dir / "config.yaml").mkdir()
    else:
        (run_dir / "config.yaml").write_text(text)
    named = []
    assert len(collect(root, root / "runs.parquet", named.append).runs) == 5
    assert len(read(root / "runs.parquet")) == 4
    assert "has no row" in named[1]
    assert message in named[1]
    assert "\n" not in named[1]


@pytest.mark.parametrize(
    ("key", "value"), [("time", "noon"), ("time", None), ("step", "64"), ("steps", [1]), ("time", math.inf)]
)
def test_a_damaged_heartbeat_is_told_and_hides_no_other_run(sweep, key, value):
    root, plan = sweep
    waiting = plan.points[3]
    beat = {"step": 64, "steps": 128, "tokens_per_second": 1e5, "time": time.time(), "host": "here"}
    waiting.run_dir.mkdir()
    (waiting.run_dir / "heartbeat.json").write_text(json.dumps(beat | {key: value}))
    runs = survey_runs(root)
    assert [run.status for run in runs] == ["finished", "diverged", "failed", "planned"]
    assert f"damaged heartbeat: heartbeat.json.{key} must be " in (runs[3].reason or "")
