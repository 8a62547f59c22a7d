"""Known columns under the names of other trainers: guessed and told, and never in the way of a mapping."""

import pandas as pd
import pytest

from hyperp.analysis import fit_law, read_runs
from hyperp.analysis.table.spellings import is_spelling

CURVE = pd.DataFrame({"lr": [0.005, 0.01, 0.02], "loss": [3.6, 3.5, 3.52]})


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("learning_rate", "lr"),
        ("Max LR", "lr"),
        ("config.optim.lr", "lr"),
        ("config/lr", "lr"),
        ("params.learning_rate", "lr"),
        ("val/loss", "loss"),
        ("metrics.val_loss", "loss"),
        ("summary.eval/loss", "loss"),
        ("n_embd", "width"),
        ("model.hidden_size", "width"),
        ("num_hidden_layers", "depth"),
        ("D", "tokens"),
        ("config.data.train_tokens", "tokens"),
        ("N", "parameters"),
    ],
)
def test_names_that_are_read(column, name):
    assert is_spelling(column, name)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("train/lr", "lr"),  # what a logger saw last: the rate at the end of the schedule
        ("summary.lr", "lr"),
        ("embedding_lr", "lr"),
        ("train/loss", "loss"),
        ("train_loss", "loss"),
        ("d", "tokens"),
        ("n", "parameters"),
        ("batch_size", "batch_tokens"),
    ],
)
def test_names_that_mean_something_else(column, name):
    assert not is_spelling(column, name)


def test_a_guess_is_told_and_a_mapping_goes_before_it():
    frame = CURVE.rename(columns={"lr": "config.optim.lr"}).assign(d_model=64, n_layer=[2, 2, 2])
    runs = read_runs(frame)
    assert runs.notes == [
        "read lr from config.optim.lr",
        "read width from d_model",
        "read depth from n_layer",
    ]
    assert runs.mapping == {"lr": "config.optim.lr", "width": "d_model", "depth": "n_layer"}
    assert runs.frame["width"].tolist() == [64, 64, 64]
    runs = read_runs(frame, {"lr": "config.optim.lr", "width": "n_layer", "depth": "d_model/8"})
    assert runs.notes == []
    assert (runs.frame["width"][0], runs.frame["depth"][0]) == (2, 8)


def test_a_known_name_is_never_replaced():
    runs = read_runs(CURVE.assign(val_loss=9.0, learning_rate=1.0))
    assert runs.notes == []
    assert runs.frame["loss"].tolist() == CURVE["loss"].tolist()


def test_two_candidates_are_an_error_unless_they_agree():
    frame = CURVE.rename(columns={"lr": "learning_rate"}).assign(max_lr=[0.005, 0.01, 0.04])
    with pytest.raises(ValueError, match=r"column lr may be learning_rate or max_lr, .*'lr': 'max_lr'"):
        read_runs(frame)
    assert read_runs(frame, {"lr": "max_lr"}).frame["lr"][2] == 0.04
    runs = read_runs(frame.assign(max_lr=frame["learning_rate"]))
    assert runs.notes == ["read lr from learning_rate"]


def test_an_error_about_a_guessed_column_says_where_it_was_read_from():
    with pytest.raises(ValueError, match=r"column tokens must be a positive .*\(read tokens from D\)"):
        read_runs(CURVE.assign(D=[1, 2, -3]))


def test_columns_that_hold_no_such_thing_are_left_alone():
    assert read_runs(CURVE.assign(hidden=["yes", "no", "no"], optim=1)).notes == []
    assert read_runs(CURVE.assign(scheduler=pd.Series(["cosine", None, "cosine"]))).notes == []


def test_a_column_that_is_asked_for_keeps_its_name(make_ladder):
    frame = make_ladder().rename(columns={"tokens": "D"})
    by_name = fit_law(frame, by="D")
    read_first = read_runs(frame)
    assert read_first.mapping == {"tokens": "D"}
    assert read_first.with_sizes(["D"]).mapping == {}
    assert "tokens" not in read_first.with_sizes(["D"]).frame
    slope = fit_law(frame, by="tokens").summary().loc["tokens", "exponent"]
    assert by_name.summary().loc["D", "exponent"] == pytest.approx(slope, rel=1e-6)


def test_a_size_that_the_sizes_asked_for_tell_already_is_not_guessed():
    frame = CURVE.assign(N=[1, 1, 2], hidden=[8, 8, 16], layers=[2, 4, 4])
    runs = read_runs(frame, sizes=["N"])
    assert runs.mapping == {"depth": "layers"}  # N tells the width, and not the depth


def test_a_batch_in_unknown_units_is_named_if_it_varies():
    (note,) = read_runs(CURVE.assign(batch_size=[1, 2, 4])).notes
    assert note.startswith("column batch_size is not read as batch_tokens")
    assert read_runs(CURVE.assign(batch_size=4)).notes == []
