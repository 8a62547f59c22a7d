"""Records: all or nothing on disk, and a loss only where a run finished."""

import json
from dataclasses import asdict

import pytest

from hyperp import record
from hyperp.record import Record

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
    with pytest.raises(ValueError, match="loss must be a number exactly when status is finished"):
        Record(status=status, loss=2.0, **KNOWN)
    with pytest.raises(ValueError, match="loss must be a number exactly when status is finished"):
        Record(status="finished", loss=None, **KNOWN)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.save(Record(status="finished", loss=float("nan"), **KNOWN), tmp_path)
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
        ("scale", {}, "missing 4 required"),
        ("scale", None, "scale must be a mapping, got None"),
        ("scale", KNOWN["scale"] | {"width": "wide"}, "width must be a whole number"),
        ("lr", "fast", "lr must be a number, got 'fast'"),
        ("config", [], r"config must be a mapping, got \[\]"),
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
