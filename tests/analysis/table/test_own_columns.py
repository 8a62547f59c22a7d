"""Points of a refusal in the columns of a table that no hyperp sweep wrote."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from hyperp.analysis import Refusal, fit_law, transfer
from hyperp.analysis.table.own_columns import in_own_columns
from tests.analysis.law_command import run

POINT = {"tokens": 4_000_000, "batch_tokens": 4096, "lr": [0.01, 0.02], "factor": 0.5}
SWEEP = {"optimizer": "muonh", "parametrization": "hyperp", "schedule": "linear"}


@pytest.fixture(scope="module")
def foreign(make_ladder) -> pd.DataFrame:
    """Two sizes, with runs that crashed."""
    frame = make_ladder(seeds=1, tokens=(32768, 65536))
    hot = frame["lr"] > 0.3
    columns = {
        "learning rate": 2 * frame["lr"],
        "val_loss": frame["loss"].mask(hot),
        "D": frame["tokens"] / 1e3,
    }
    return pd.DataFrame(columns).assign(State=np.where(hot, "crashed", "finished"))


MAPPING = {"lr": "`learning rate`/2", "loss": "val_loss", "tokens": "D*1000"}


def test_values_are_converted_back_or_stand_under_their_expression():
    names = {"tokens": "1000*D", "batch_tokens": "bs * seq", "lr": "`peak lr`/2"}
    assert in_own_columns([POINT], names) == [{"D": 4000, "bs * seq": 4096, "peak lr": [0.02, 0.04]}]
    assert in_own_columns([POINT], {}) == [{n: v for n, v in POINT.items() if n != "factor"}]
    assert in_own_columns([SWEEP | POINT], names) is None


def test_a_refused_foreign_table_hears_of_its_own_columns_and_of_no_sweep(foreign, tmp_path):
    foreign.to_csv(tmp_path / "runs.csv", index=False)
    words = [word for name, source in MAPPING.items() for word in ("--map", f"{name}={source}")]
    result = run("fit", tmp_path / "runs.csv", *words, "--by", "tokens", "-o", tmp_path / "law.json")
    assert result.exit_code == 3
    assert "hyperp-sweep" not in result.stderr
    assert "2 slices, of which 2 bracketed, 3 needed" in result.stderr
    assert "2 failed" in result.stderr
    assert "run next: D=131.072 learning rate=0.0039" in result.stderr
    text = (tmp_path / "law.points.yaml").read_text()
    assert "hyperp-sweep" not in text
    points = yaml.safe_load(text)["points"]
    assert {point["D"] for point in points} == {131.072}
    assert sorted(point["learning rate"] for point in points) == sorted(
        float(f"{rate:.4g}") * 2 for rate in foreign["learning rate"].unique() / 2 if rate <= 0.3
    )
    printed = run("fit", tmp_path / "runs.csv", *words, "--by", "tokens", "-o", tmp_path / "l.json", "--json")
    assert set(json.loads(printed.stdout)["next"][0]) == {"D", "learning rate"}


def test_in_python_too(foreign):
    with pytest.raises(Refusal) as caught:
        fit_law(foreign, by="tokens", mapping=MAPPING)
    assert list(caught.value.next_points) == ["D", "learning rate"]
    assert caught.value.next_points["learning rate"].dtype == np.float64
    with pytest.raises(Refusal) as caught:
        transfer(foreign.assign(w=64), "width", mapping={**MAPPING, "width": "w"}, where={"D": "32.768"})
    assert list(caught.value.next_points) == ["w", "D", "learning rate"]


def test_a_law_of_a_foreign_table_keeps_to_its_columns(make_ladder, tmp_path):
    frame = make_ladder(seeds=1)[["lr", "loss", "tokens"]].rename(columns={"lr": "eta", "tokens": "D"})
    law = fit_law(frame, by="tokens", mapping={"lr": "eta", "tokens": "D"})
    with pytest.raises(Refusal) as caught:
        law.recommend(tokens=1e12)
    assert list(caught.value.next_points) == ["D", "eta"]
    law.save(tmp_path / "law.json")
    result = run("next", tmp_path / "law.json", "--tokens", "1e7", "-o", tmp_path / "next.yaml")
    assert result.exit_code == 0
    assert "hyperp-sweep" not in result.stdout
    assert all({"D", "eta"} <= set(p) for p in yaml.safe_load((tmp_path / "next.yaml").read_text())["points"])
