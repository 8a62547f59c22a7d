"""Records: complete or absent on disk, checked when read, with a loss only if the run finished."""

import json
from dataclasses import asdict

import pytest
import torch

from hyperp.rundir import record
from hyperp.rundir.failure import failure_cause
from hyperp.rundir.record import Record

KNOWN = {
    "run_id": "abc",
    "optimizer": "muonh",
    "parametrization": "hyperp",
    "schedule": "linear",
    "data": "stdlib",
    "scale": {"width": 32, "depth": 2, "tokens": 65536, "batch_tokens": 512, "granularity": 1, "sparsity": 1},
    "seed": 0,
    "lr": 0.1,
    "base_lr": 0.1,
    "config": {},
}


def test_round_trip(tmp_path):
    one = Record(status="finished", loss=2.0, **KNOWN)
    record.save(one, tmp_path)
    assert record.load(tmp_path) == one
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_no_record_is_none(tmp_path):
    assert record.load(tmp_path) is None


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_that_did_not_finish_has_no_number(status):
    with pytest.raises(ValueError, match=r"loss must .*status .* got 2\.0"):
        Record(status=status, loss=2.0, **KNOWN)
    with pytest.raises(ValueError, match=r"loss must .*status .* got None"):
        Record(status="finished", loss=None, **KNOWN)


def test_only_a_failed_run_has_a_cause_and_older_records_have_none(tmp_path):
    for status, loss, cause in [
        ("finished", 2.0, "killed"),
        ("diverged", None, "raised"),
        ("failed", None, "x"),
    ]:
        with pytest.raises(ValueError, match=rf"cause must .* got .*{cause}"):
            Record(status=status, loss=loss, cause=cause, **KNOWN)
    for cause in record.CAUSES:
        assert Record(status="failed", cause=cause, **KNOWN).cause == cause
    value = asdict(Record(status="failed", cause="killed", **KNOWN))
    value.pop("cause")
    (tmp_path / "record.json").write_text(json.dumps(value))
    loaded = record.load(tmp_path)
    assert loaded is not None
    assert loaded.cause is None


def allocate():
    torch.empty(2**46, dtype=torch.uint8)


def raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_running_out_of_memory_is_told_from_other_exceptions():
    for error in (raised(allocate), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert failure_cause(error) == "out_of_memory", error
    for error in (raised(lambda: torch.zeros(2) @ torch.zeros(3)), KeyError("x")):
        assert failure_cause(error) == "raised", error


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match=r"loss[^$]*finite number[^$]*nan"):
        Record(status="finished", loss=float("nan"), **KNOWN)
    one = Record(status="failed", stability={"looks": float("nan")}, **KNOWN)
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.save(one, tmp_path)
    assert record.load(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a record"),
        ('{"schema": 1, "run', "not a record"),
        ("[]", "schema must be"),
        ("{}", "got None"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, text, message):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match=rf"record\.json: .*{message}"):
        record.load(tmp_path)


def test_a_record_of_another_schema_is_refused(tmp_path):
    value = asdict(Record(status="finished", loss=2.0, **KNOWN)) | {"schema": 99}
    (tmp_path / "record.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="schema must be 1, got 99"):
        record.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", {}, "width must be given"),
        ("scale", KNOWN["scale"] | {"hidden": 8}, "hidden .* got 8"),
        ("scale", None, "scale must be a mapping, got None"),
        ("scale", KNOWN["scale"] | {"width": "wide"}, "width must be a whole number"),
        ("lr", "fast", "lr must be a number, got 'fast'"),
        ("config", [], r"config must be a mapping, got \[\]"),
        ("seed", 1.5, "seed must be a whole number, got 1.5"),
        ("steps", True, "steps must be a whole number, got True"),
        ("loss", "2", "loss must be a number, got '2'"),
        ("flops", float("inf"), "flops must be a finite number, got inf"),
        ("reason", 7, "reason must be text, got 7"),
        ("max_vio", {"mean": 1.0}, "max_vio.mean must be a list, got 1.0"),
        ("environment", {"host": 1}, "environment.host must be text, got 1"),
    ],
)
def test_a_record_edited_to_nonsense_names_the_field(tmp_path, field, value, message):
    text = asdict(Record(status="finished", loss=2.0, **KNOWN)) | {field: value}
    (tmp_path / "record.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=rf"record\.json: .*{message}"):
        record.load(tmp_path)
    assert record.load_or_set_aside(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["record.damaged"]


def test_a_record_of_another_version_is_not_set_aside(tmp_path):
    value = asdict(Record(status="finished", loss=2.0, **KNOWN)) | {"schema": 99}
    (tmp_path / "record.json").write_text(json.dumps(value))
    with pytest.raises(record.OtherSchemaError, match="schema must be 1, got 99"):
        record.load_or_set_aside(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
