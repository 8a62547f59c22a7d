"""A table of runs is cut into slices without losing a row, or refused with one line that names the column."""

import time

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.table.slices import cut_slices, strata
from hyperp.analysis.table.validate import check_frame, filter_runs, parse_where, read_runs


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
    slices = cut_slices(check_frame(frame))
    assert [s.covariates["tokens"] for s in slices] == [32768, 65536]
    assert slices[0].dropped == {"diverged": 1, "failed": 1, "finished, loss not finite": 1, "planned": 1}
    assert sum(len(s.lr) + sum(s.dropped.values()) for s in slices) == len(frame)
    assert slices[0].diverged == (frame["lr"][0],)
    assert all(np.isfinite(s.loss).all() for s in slices)


def test_base_rate_is_not_part_of_a_slice_and_its_factor_is_kept(make_ladder):
    frame = make_ladder(tokens=(32768,)).assign(base_lr=lambda f: f["lr"] / 0.7)
    (one,) = cut_slices(check_frame(frame))
    assert one.factor == pytest.approx(0.7, rel=1e-6)


def test_strata_differ_only_in_what_is_free(make_ladder):
    frame = pd.concat([make_ladder(), make_ladder(tokens=(65536,), covariates={"width": 64})])
    slices = cut_slices(check_frame(frame))
    groups = strata(slices, ["tokens"])
    assert sorted(len(g) for g in groups) == [1, 5]
    assert len(strata(slices, ["tokens", "width"])) == 1


def test_columns_that_are_not_there_tell_nothing_apart(make_ladder):
    frame = make_ladder(seeds=1)
    few = cut_slices(check_frame(frame[["lr", "loss", "tokens"]]))
    assert [s.covariates for s in few] == [{"tokens": 2**k} for k in range(15, 20)]
    assert set(few[0].context.values()) == {""}
    assert few[0].factor is None
    for one, same in zip(few, cut_slices(check_frame(frame)), strict=True):
        np.testing.assert_array_equal(one.loss, same.loss)


def test_any_column_of_sizes_defines_slices_and_whole_ones_stay_whole(make_ladder):
    frame = make_ladder(tokens=(32768, 65536)).drop(columns="tokens")
    frame["N"] = np.repeat([1.5e9, 2.5], len(frame) // 2)
    frame["D"] = np.repeat([1e9, 2e9], len(frame) // 2)
    slices = cut_slices(check_frame(frame, ["N", "D"]), extra=["N", "D"])
    assert [(s.covariates["N"], s.covariates["D"]) for s in slices] == [(2.5, 2 * 10**9), (1.5e9, 10**9)]
    assert isinstance(slices[0].covariates["D"], int)


def test_what_is_tuned_beside_the_rate_does_not_cut_slices(make_ladder):
    frames = [make_ladder(tokens=(32768,), covariates={"batch_tokens": b}) for b in (512, 1024)]
    (one,) = cut_slices(check_frame(pd.concat(frames)), over=("lr", "batch_tokens"))
    assert "batch_tokens" not in one.covariates
    assert len(one.lr) == len(frames[0]) + len(frames[1])
    assert set(one.tuned["batch_tokens"]) == {512.0, 1024.0}


def test_a_foreign_table_is_read_under_the_names_of_the_analysis(make_ladder, tmp_path):
    frame = make_ladder(seeds=1)
    foreign = pd.DataFrame(
        {
            "Learning Rate": frame["lr"],
            "smooth loss": frame["loss"],
            "D": frame["tokens"] / 1e3,
            "State": "finished",
        }
    )
    foreign.loc[0, ["smooth loss", "State"]] = [np.nan, "crashed"]
    foreign["smooth loss"] = foreign["smooth loss"].astype(object)
    foreign.loc[1, "smooth loss"] = "Infinity"  # as a Weights & Biases export writes it
    names = {"lr": "Learning Rate", "loss": "smooth loss", "tokens": "D*1000", "status": "State"}
    slices = cut_slices(read_runs(_write(foreign, tmp_path), names).frame)
    assert [s.covariates["tokens"] for s in slices] == [2**k for k in range(15, 20)]
    assert slices[0].dropped == {"failed": 1, "finished, loss not finite": 1}
    assert len(slices[0].lr) == 7


def test_rows_outside_where_need_not_be_valid(make_ladder):
    frame = make_ladder(tokens=(32768,)).astype({"lr": object})
    other = frame.assign(optimizer="adamw", lr="?")
    both = pd.concat([frame, other], ignore_index=True)
    with pytest.raises(ValueError, match=r"column lr must be a number, got '\?' in row 19"):
        check_frame(both)
    assert len(check_frame(both, where={"optimizer": "muonh"})) == len(frame)


def test_a_million_rows_are_cut_in_seconds():
    n = 1_000_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"tokens": np.repeat(np.arange(1, 5001), 200), "lr": np.tile(2.0 ** -np.arange(20), n // 20)}
    )
    frame["seed"] = np.tile(np.repeat(np.arange(10), 20), n // 200)
    frame["loss"] = 3 + rng.random(n)
    start = time.perf_counter()
    slices = cut_slices(check_frame(frame.sample(frac=1, random_state=0)))
    assert time.perf_counter() - start < 20
    assert len(slices) == 5000
    assert sum(len(s.lr) for s in slices) == n


def test_the_same_rate_and_seed_twice_is_refused_or_averaged(make_ladder):
    frame = make_ladder(tokens=(32768,))
    twice = check_frame(pd.concat([frame, frame.assign(loss=frame["loss"] + 1)]))
    with pytest.raises(ValueError, match=r"two finished runs have lr=.* and seed=0 in one slice"):
        cut_slices(twice)
    np.testing.assert_allclose(
        cut_slices(twice, unique=False)[0].loss,
        cut_slices(check_frame(frame))[0].loss + 0.5,
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("lr", -0.1, "column lr must be a positive finite number, got -0.1 in row 3"),
        ("lr", np.inf, "column lr must be a positive finite number, got inf"),
        ("lr", np.nan, "column lr must be a positive finite number, got nan"),
        ("loss", -1.0, "column loss must be a positive number in a finished run, got -1.0"),
        ("tokens", 0, "column tokens must be a positive finite number, got 0"),
        ("width", np.inf, "column width must be a positive finite number, got inf"),
        ("seed", -1, "column seed must be a whole number of at least 0, got -1"),
        ("status", "done", "status must be one of planned, .*finished, diverged, .*got 'done'"),
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
    with pytest.raises(ValueError, match=r"lacks the column\(s\) lr, loss; it has"):
        read_runs(_write(frame.drop(columns=["loss", "lr"]), tmp_path))
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
        ("runs.txt", "", "allowed are .parquet, .csv, .jsonl"),
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
    with pytest.raises(ValueError, match=r"where=.*adamw.* matches no row; optimizer holds muonh"):
        filter_runs(frame, {"optimizer": "adamw"})
    with pytest.raises(ValueError, match="no such column"):
        filter_runs(frame, {"colour": "red"})
    with pytest.raises(ValueError, match="column tokens holds numbers"):
        filter_runs(frame, {"tokens": "many"})
    with pytest.raises(ValueError, match="--where must be COLUMN=VALUE"):
        parse_where(["optimizer"])


def test_a_setting_tells_runs_apart_only_where_nothing_else_does(make_ladder):
    frame = make_ladder(tokens=(65536,), seeds=1)
    one, other = frame.assign(setting="aaaa"), frame.assign(setting="bbbb")
    assert [s.context["setting"] for s in cut_slices(check_frame(one))] == [""]
    both = pd.concat([one, other], ignore_index=True)
    assert [s.context["setting"] for s in cut_slices(check_frame(both))] == ["aaaa", "bbbb"]
    apart = pd.concat([one, other.assign(optimizer="sso")], ignore_index=True)
    assert [s.context["setting"] for s in cut_slices(check_frame(apart))] == ["", ""]
