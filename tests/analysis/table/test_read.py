"""Foreign tables: names for columns, columns times a number, one line for what is wrong."""

import bz2
import gzip
import hashlib
import io
import lzma

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.table.read import apply_map, parse_map, read_table

FRAME = pd.DataFrame(
    {"smooth loss": [2.0, 3.0], "bs": [4, 8], "who": ["a", "b"], "a*2": [1, 2], "loss": [9.0, 9.0]}
)


def test_names_and_factors():
    mapping = parse_map(["loss=smooth loss", "batch_tokens = bs * 2048", "optimizer=who", "x=a*2"])
    found = apply_map(FRAME, mapping)
    assert found["loss"].tolist() == [2.0, 3.0]
    assert found["batch_tokens"].tolist() == [8192.0, 16384.0]
    assert found["optimizer"].tolist() == ["a", "b"]
    assert found["x"].tolist() == [1, 2]  # a column whose own name holds a star
    assert found["bs"].tolist() == [4, 8]


def test_columns_can_change_places():
    found = apply_map(FRAME, parse_map(["loss=smooth loss", "smooth loss=loss"]))
    assert (found["loss"].tolist(), found["smooth loss"].tolist()) == ([2.0, 3.0], [9.0, 9.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss", "--map must be NAME=COLUMN or NAME=EXPRESSION, got 'loss'"),
        ("=bs", "--map must be NAME=COLUMN"),
        ("loss=lss", "mapping=.*lss.*: no column 'lss' at character 1; did you mean loss"),
        ("b=bs*two", "no column 'two' at character 4"),
        ("b=who*2", "column who must be a number, got 'a' in row 1"),
        ("b=c/2", "no column 'c' at character 1"),
        ("b=b*2", "no column 'b' at character 1"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        apply_map(FRAME, parse_map([text]))


def test_names_may_be_computed_from_each_other_but_not_in_a_circle():
    found = apply_map(FRAME, {"c": "sqrt(b)", "b": "bs**2/4", "same": "b"})
    np.testing.assert_allclose(found["c"], [2.0, 4.0], rtol=1e-12, atol=0)
    assert found["same"].tolist() == [4.0, 16.0]
    with pytest.raises(ValueError, match="b must not be computed from itself"):
        apply_map(FRAME, {"b": "c+1", "c": "b-1"})


def test_fields_after_the_last_comma_of_a_row_are_no_values(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("run,lr,loss\na,0.01,3.5,\n\nb,0.02,3.4\nc,0.04,3.6,,\n")
    found = read_table(path).frame
    assert found.to_dict("list") == {
        "run": ["a", "b", "c"],
        "lr": [0.01, 0.02, 0.04],
        "loss": [3.5, 3.4, 3.6],
    }
    path.write_text('run,lr,loss\n"a\nb",0.01,3.5\n0,b,0.02,3.4\n')
    with pytest.raises(ValueError, match=r"row 2 \(line 4\) has 4 values, but the header names 3 columns"):
        read_table(path)


def test_a_very_long_field_is_read(tmp_path):
    long = "x" * 200_000
    (tmp_path / "runs.csv").write_text(f"notes,lr\n{long},0.01\n")
    assert read_table(tmp_path / "runs.csv").frame["notes"].tolist() == [long]


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="--map names loss twice: 'a' and 'b'"):
        parse_map(["loss=a", "loss=b"])


def test_tables_are_read_from_parquet_csv_and_folders(tmp_path):
    frame = FRAME.assign(kept=[True, False])
    frame.to_parquet(tmp_path / "runs.parquet")
    frame.to_csv(tmp_path / "runs.csv", index=False)
    folder, file, text = (read_table(p) for p in (tmp_path, tmp_path / "runs.parquet", tmp_path / "runs.csv"))
    assert folder.sha256 == file.sha256 != text.sha256
    assert len(file.sha256) == 64
    pd.testing.assert_frame_equal(file.frame, text.frame, check_dtype=False)
    assert file.frame["kept"].tolist() == ["True", "False"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "does not exist"),
        ("runs.txt", "a,b\n1,2\n", "ends in '.txt'; allowed are"),
        ("runs.csv", "", "is empty"),
        ("runs.csv", "a,b\n", "holds no rows"),
        ("runs.csv", "a,b,a\n1,2,3\n", r"names the column\(s\) a twice"),
        ("runs.parquet", "not parquet", "is not a readable Parquet file"),
    ],
)
def test_unreadable_tables_are_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr,loss,width\n0.1,3,8\n0.2,3\n", r"row 2 \(line 3\) has 2 values, but the header names 3 columns"),
        ("lr;loss\n0,1;3\n", "separated by commas, got ';' in the header"),
        ("lr\tloss\n0.1\t3\n", "separated by commas, got a tab in the header"),
        ('lr,loss\n0.1,3\n"0,25",3\n', r"row 2 \(line 3\), column lr must be .* decimal point, got '0,25'"),
        ("lr,loss\n0.1,é\n".encode("latin-1"), "line 2, character 5 must be UTF-8, got the byte 0xe9"),
        ("lr,loss\n".encode("utf-16"), "must be UTF-8, got UTF-16"),
        (b"\x1f\x8b\x08rest", "must be text, as its name says, got gzip data"),
        (b"PAR1rest", "must be text, as its name says, got Parquet data"),
        (b"PK\x03\x04rest", r"got zip \(as \.xlsx is\) data"),
        ('lr,notes\n0.1,"open\n', "line 2 is not CSV: unexpected end of data"),
        (b"\n \n", "is empty"),
    ],
)
def test_malformed_csv_is_refused_with_its_place(tmp_path, content, message):
    path = tmp_path / "runs.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_numbers_in_groups_of_thousands_are_no_decimal_commas(tmp_path):
    (tmp_path / "runs.csv").write_text('lr,tokens,tags\n0.1,"1,000,000","a, b"\n')
    assert read_table(tmp_path / "runs.csv").frame["tokens"].tolist() == ["1,000,000"]


@pytest.mark.parametrize(("ending", "module"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_compressed_text_is_read_by_its_name(tmp_path, ending, module):
    path = tmp_path / f"runs.csv{ending}"
    path.write_bytes(module.compress(b"lr,loss\n0.1,3\n"))
    assert read_table(path).frame.to_dict("list") == {"lr": [0.1], "loss": [3]}
    path.write_bytes(b"lr,loss\n0.1,3\n")
    with pytest.raises(ValueError, match="is not the compressed file that its name says"):
        read_table(path)
    path.write_bytes(module.compress(b"lr,loss\n0.1,3\n" * 99)[:-5])
    with pytest.raises(ValueError, match="is not the compressed file that its name says"):
        read_table(path)


def test_json_lines_are_read_as_csv_is(tmp_path):
    lines = [
        '{"optim": {"lr": 0.01}, "loss": 3.5, "tags": ["a", "b"], "ok": true}',
        "",
        '{"optim": {"lr": 0.02}, "loss": NaN}',
    ]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n")
    found = read_table(tmp_path / "runs.jsonl").frame
    assert found["optim.lr"].tolist() == [0.01, 0.02]
    assert (found["loss"][0], np.isnan(found["loss"][1])) == (3.5, True)
    assert found["tags"][0] == '["a", "b"]'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"lr": 1}\n{"lr": \n', "line 2, character 8 is not JSON"),
        ('{"lr": 1}\n[1]\n', r"line 2 must be a JSON object, got '\[1\]'"),
        ('{"lr": 1, "lr": 2}\n', "line 1 names the key lr twice"),
        ("\n", "is empty"),
        (b'{"lr": "\xff"}', "line 1, character 9 must be UTF-8"),
    ],
)
def test_malformed_json_lines_are_refused_with_their_place(tmp_path, content, message):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    "content", [b"lr,loss\n0.1,3.5\n", b'{"lr": 0.1, "loss": 3.5}\n', FRAME[["loss"]].to_parquet()]
)
def test_standard_input_is_known_by_its_content(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    table = read_table("-")
    assert (table.path, table.sha256) == ("-", hashlib.sha256(content).hexdigest())
    assert set(table.frame["loss"]) <= {3.5, 9.0}


def test_standard_input_that_is_no_table_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\x1f\x8bxx")))
    with pytest.raises(ValueError, match=r"standard input must be .*, got gzip data"):
        read_table("-")
