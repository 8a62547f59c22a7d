"""Runs that were done again, in a table without a column seed: seeds if they are repeats, or an error."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import check, read_runs
from hyperp.analysis.table.slices import cut_slices

RATES = (0.01, 0.02, 0.04, 0.08)


def repeated(times: int = 3, noise: float = 0.01) -> pd.DataFrame:
    """One curve, each rate run several times, sorted by loss as a run table on a screen often is."""
    rng = np.random.default_rng(0)
    rows = [
        {"lr": lr, "width": 64, "loss": 3.5 + 0.05 * np.log2(lr / 0.02) ** 2 + noise * rng.normal()}
        for lr in RATES
        for _ in range(times)
    ]
    return pd.DataFrame(rows).sort_values("loss", ignore_index=True)


def test_repeats_become_seeds_and_a_note_counts_them():
    runs = read_runs(repeated())
    counts = runs.frame.groupby("lr")["seed"].agg(lambda seeds: sorted(seeds) == [0, 1, 2])
    assert counts.all()
    (note,) = runs.notes
    assert note.startswith("8 runs repeat others")
    assert "no column seed" in note
    assert "3 seeds" in note
    found = check(repeated())
    assert note in found.warnings
    assert {p.seeds for p in found.slices[0].points} == {3}


def test_seeds_are_no_order_of_the_losses():
    """A seed that had the lowest loss at every rate would pass for the better seed, and hide the scatter."""
    frame = read_runs(pd.concat([repeated(times=2).assign(width=w) for w in range(1, 41)])).frame
    first = frame.sort_values("loss").drop_duplicates(["width", "lr"])["seed"]
    assert len(first) == 40 * len(RATES)
    assert 0.35 < first.mean() < 0.65


def test_names_times_and_results_of_repeats_do_not_tell_them_apart():
    frame = repeated()
    rng = np.random.default_rng(1)
    frame["Name"] = [f"run-{i}" for i in range(len(frame))]
    frame["Runtime"] = 3600 + 60 * rng.normal(size=len(frame))
    frame["train_loss"] = frame["loss"] + 0.002 * rng.normal(size=len(frame))
    (note,) = read_runs(frame).notes
    assert all(name in note for name in ("Name", "Runtime", "train_loss"))


@pytest.mark.parametrize(
    ("column", "values"),
    [("weight_decay", np.tile([0.0, 0.1, 0.3], 4)), ("warmup", np.geomspace(1e-4, 1e-1, 12)[::-1])],
)
def test_a_setting_is_no_repeat(column, values):
    """Values that recur, or that were drawn over a wide range, are those of an experiment."""
    frame = repeated(noise=1e-6).sort_values("lr", ignore_index=True)
    rng = np.random.default_rng(0)
    frame[column] = values if column == "weight_decay" else rng.permutation(values)
    runs = read_runs(frame)
    assert runs.notes == []
    with pytest.raises(ValueError, match=rf"they differ in {column}\); .*where=.*slice_by {column}|slice_by"):
        cut_slices(runs.frame)


def test_a_size_that_is_named_later_leaves_repeats_within_it():
    frame = pd.concat([repeated(2), repeated(2).assign(width=128)]).rename(columns={"width": "N"})
    runs = read_runs(frame)
    assert runs.notes == []
    sized = runs.with_sizes(["N"])
    assert len(sized.notes) == 1
    assert [len(one.lr) for one in cut_slices(sized.frame, extra=["N"])] == [8, 8]


def test_copies_are_no_repeats():
    frame = repeated(times=1)
    runs = read_runs(pd.concat([frame, frame.iloc[:1]]))
    with pytest.raises(ValueError, match=r"copies down to the loss\); remove one"):
        cut_slices(runs.frame)


def test_with_a_column_seed_a_repeat_is_an_error_that_says_what_helps():
    frame = repeated(times=2).assign(seed=0)
    with pytest.raises(ValueError, match=r"differ in the loss alone\); remove one .* own seed"):
        cut_slices(read_runs(frame).frame)
