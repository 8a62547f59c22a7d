"""A table of runs is cut into slices without losing a row, or refused with one line that names the column."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.records import check_frame, filter_runs, parse_where, read_runs
from hyperp.analysis.slices import split, strata


def _write(frame: pd.DataFrame, folder, name="runs.csv"):
    path = folder / name
    if name.endswith(".csv"):
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def test_every_row_is_in_a_slice_or_counted(make_ladder):
    frame = make_ladder(tokens=(32768, 65536))
    frame.loc[:2, "status"] = ["diverged", "failed", "planned"]
    frame.loc[:2, "loss"] = np.nan
    frame.loc[3, "loss"] = np.inf
    slices = split(check_frame(frame))
    assert [s.covariates["tokens"] for s in slices] == [32768, 65536]
    assert slices[0].dropped == {"diverged": 1, "failed": 1, "finished, loss not finite": 1, "planned": 1}
    assert sum(len(s.lr) + sum(s.dropped.values()) for s in slices) == len(frame)
    assert slices[0].diverged == (frame["lr"][0],)
    assert all(np.isfinite(s.loss).all() for s in slices)


def test_base_rate_is_not_part_of_a_slice_and_its_factor_is_kept(make_ladder):
    frame = make_ladder(tokens=(32768,)).assign(base_lr=lambda f: f["lr"] / 0.7)
    (one,) = split(check_frame(frame))
    assert one.factor == pytest.approx(0.7, rel=1e-6)


def test_strata_differ_only_in_what_is_free(make_ladder):
    frame = pd.concat([make_ladder(), make_ladder(tokens=(65536,), covariates={"width": 64})])
    slices = split(check_frame(frame))
    groups = strata(slices, ["tokens"])
    assert sorted(len(g) for g in groups) == [1, 5]
    assert len(strata(slices, ["tokens", "width"])) == 1


def test_harmless_columns_get_defaults(make_ladder):
    frame = make_ladder(seeds=1).drop(columns=["granularity", "sparsity", "seed", "status", "base_lr"])
    slices = split(check_frame(frame))
    assert slices[0].covariates["granularity"] == slices[0].covariates["sparsity"] == 1
    assert slices[0].factor is None


def test_the_same_rate_and_seed_twice_is_refused_or_averaged(make_ladder):
    frame = make_ladder(tokens=(32768,))
    twice = check_frame(pd.concat([frame, frame.assign(loss=frame["loss"] + 1)]))
    with pytest.raises(ValueError, match=r"two finished runs have lr=.* and seed=0 in one slice"):
        split(twice)
    np.testing.assert_allclose(
        split(twice, unique=False)[0].loss, split(check_frame(frame))[0].loss + 0.5, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("lr", -0.1, "column lr must be a positive finite number, got -0.1 in row 3"),
        ("lr", np.inf, "column lr must be a positive finite number, got inf"),
        ("lr", np.nan, "column lr must be a positive finite number, got nan"),
        ("loss", -1.0, "column loss must be a positive number in a finished run, got -1.0"),
        ("tokens", 0, "column tokens must be a whole number of at least 1, got 0"),
        ("width", 32.5, "column width must be a whole number of at least 1, got 32.5"),
        ("seed", -1, "column seed must be a whole number of at least 0, got -1"),
        (
            "status",
            "done",
            "column status must be one of planned, running, finished, diverged, failed, got 'done'",
        ),
        ("optimizer", " ", "column optimizer must be text that is not empty, got ' '"),
        ("loss", "low", "column loss must be a number, got 'low'"),
    ],
)
def test_a_wrong_value_is_named(make_ladder, column, value, message):
    frame = make_ladder(tokens=(32768,)).astype({column: object})
    frame.loc[2, column] = value
    with pytest.raises(ValueError, match=message):
        check_frame(frame)


def test_missing_and_repeated_columns_are_named(make_ladder, tmp_path):
    frame = make_ladder(tokens=(32768,))
    with pytest.raises(ValueError, match=r"lacks the column\(s\) width, lr; it has"):
        read_runs(_write(frame.drop(columns=["width", "lr"]), tmp_path))
    text = _write(frame.rename(columns={"base_lr": "lr2"}), tmp_path).read_text().replace("lr2", "lr", 1)
    (tmp_path / "twice.csv").write_text(text)
    with pytest.raises(ValueError, match=r"names the column\(s\) lr twice"):
        read_runs(tmp_path / "twice.csv")


def test_files_that_are_no_table_are_refused(make_ladder, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_runs(tmp_path / "absent.parquet")
    with pytest.raises(
        ValueError, match=r"is a folder without runs\.parquet; make it with `hyperp-sweep collect"
    ):
        read_runs(tmp_path)
    for name, text, message in (
        ("empty.csv", "", "is empty"),
        ("text.parquet", "hello", "is not a readable Parquet file"),
        ("runs.txt", "", "allowed are .parquet, .csv or a folder"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_runs(tmp_path / name)
    with pytest.raises(ValueError, match="holds no rows"):
        read_runs(_write(make_ladder().head(0), tmp_path, "none.csv"))


def test_parquet_csv_and_folder_read_alike(make_ladder, tmp_path):
    frame = make_ladder()
    _write(frame, tmp_path, "runs.parquet")
    from_folder, from_csv = read_runs(tmp_path).frame, read_runs(_write(frame, tmp_path)).frame
    pd.testing.assert_frame_equal(from_folder, from_csv, check_dtype=False, rtol=1e-12)


def test_where_filters_and_names_what_there_is(make_ladder):
    frame = check_frame(make_ladder())
    assert set(filter_runs(frame, {"tokens": "65536", "optimizer": "muonh"})["tokens"]) == {65536}
    with pytest.raises(ValueError, match=r"--where optimizer=adamw matches no row; optimizer holds muonh"):
        filter_runs(frame, {"optimizer": "adamw"})
    with pytest.raises(ValueError, match="no such column"):
        filter_runs(frame, {"colour": "red"})
    with pytest.raises(ValueError, match="column tokens holds numbers"):
        filter_runs(frame, {"tokens": "many"})
    with pytest.raises(ValueError, match="--where must be COLUMN=VALUE"):
        parse_where(["optimizer"])
