"""law.json comes back as it was, and an edited one is refused with one line that names the field."""

import json
import math

import numpy as np
import pytest

from hyperp.analysis import Law, fit_law, load_law
from hyperp.analysis.files import write_text
from hyperp.analysis.law.schema import law_text
from hyperp.analysis.table.validate import Runs


@pytest.fixture(scope="module")
def law(make_ladder) -> Law:
    frame = make_ladder(seed_shift=0.1, tokens=(32768, 65536, 131072, 262144))
    return fit_law(Runs(frame, "runs.parquet", "ab" * 32), ["tokens"], command="hyperp-law fit ...")


def test_a_law_comes_back_as_it_was(law, tmp_path):
    law.save(tmp_path / "law.json")
    assert load_law(tmp_path / "law.json") == law
    assert [p.name for p in tmp_path.iterdir()] == ["law.json"]


def test_the_same_table_gives_the_same_file(law, make_ladder):
    frame = make_ladder(seed_shift=0.1, tokens=(32768, 65536, 131072, 262144))
    again = fit_law(Runs(frame, "runs.parquet", "ab" * 32), ["tokens"], command="hyperp-law fit ...")
    assert again.model_copy(update={"created": law.created}).model_dump_json() == law.model_dump_json()


def test_it_says_what_it_is_for(law):
    assert (law.form, law.space) == ("lr = exp(a) * product of covariate^b", "log")
    assert law.context["optimizer"] == "muonh"
    assert set(law.held) == {"width", "depth", "batch_tokens", "granularity", "sparsity"}
    assert all(len(s.points) == 9 and s.points[0].seeds == 2 for s in law.slices)


def test_the_seed_spread_is_the_noise_that_the_runs_have(make_ladder):
    """Noise 0.2% and seed levels scattering by 1%, both of a floor of about 4 nats."""
    frame = make_ladder(seeds=20, tokens=(32768, 65536, 131072))
    spread = fit_law(Runs(frame, "runs.parquet", "0" * 64), ["tokens"]).seed_spread
    floor = np.sqrt(np.mean([(2 + 3 * 2 ** (-0.3 * k)) ** 2 for k in range(3)]))
    np.testing.assert_allclose(spread.difference_sd, np.sqrt(2) * 0.002 * floor, rtol=0.15, atol=0)  # pyright: ignore
    np.testing.assert_allclose(spread.loss_sd, np.hypot(0.01, 0.002) * floor, rtol=0.25, atol=0)  # pyright: ignore
    assert (spread.loss_df, spread.difference_df) == (3 * 3 * 19, 3 * 2 * 19)


def _edit(raw: dict, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        raw = raw[int(name) if name.isdigit() else name]
    if value is ...:
        del raw[last]
    else:
        raw[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", 1, "schema_version must be 4, got 1; fit the law again"),
        ("schema_version", 2, "schema_version must be 4, got 2; fit the law again"),
        ("schema_version", ..., "schema_version must be 4, got None"),
        ("ranges", ..., "ranges must be given"),
        ("tau", -0.1, "tau must be greater than or equal to 0, got -0.1"),
        ("tau", math.nan, "tau must be a finite number, got nan"),
        ("df", 0, "df must be greater than or equal to 1, got 0"),
        ("df", 7, "df must be the slices used less the coefficients, got 7 for 4 slices"),
        ("ranges.tokens", [-5, 10], r"ranges\.tokens\.0 must be greater than 0, got -5"),
        ("ranges.tokens", [10, 5], r"ranges\.tokens must be ordered, got 10 to 5"),
        ("exponents.tokens.value", 3.0, "low <= value <= high must hold"),
        ("exponents.tokens.se", 3.0, "covariance must agree with the standard errors"),
        ("exponents", {}, "exponents must be for"),
        ("covariance", [[1.0]], "covariance must be 2 x 2"),
        ("covariance", [[1.0, 0.5], [0.4, 1.0]], "covariance must be symmetric"),
        ("covariance", [[1.0, 2.0], [2.0, 1.0]], "covariance must be positive semi-definite"),
        ("form", "lr = a + b", "form must be"),
        (
            "slices.0.points",
            [{"lr": -1.0, "loss": 1.0, "seeds": 1}],
            r"slices\.0\.points\.0\.lr must be gr",
        ),
        ("slices.0.optimum", None, "slices that are used must have an optimum"),
        ("colour", "red", "colour .*got .red"),
    ],
)
def test_an_edited_law_is_refused_in_one_line(law, tmp_path, path, value, message):
    raw = json.loads(law_text(law))
    _edit(raw, path, value)
    (tmp_path / "law.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message) as caught:
        load_law(tmp_path / "law.json")
    assert "\n" not in str(caught.value)


def test_what_is_no_law_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_law(tmp_path / "absent.json")
    for text, message in (("{", "is not JSON"), ("[1]", "schema_version must be 4, got None")):
        (tmp_path / "law.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_law(tmp_path / "law.json")


def test_a_law_changed_within_what_is_possible_is_still_refused(law, tmp_path):
    """Every field could stand like this in a law, but not in this one."""
    path = tmp_path / "law.json"
    low = law.exponents["tokens"].low
    for field, value in (
        ("exponents.tokens.value", 0.5 * (law.exponents["tokens"].value + low)),
        ("tau", law.tau + 0.1),
        ("context.optimizer", "adamw"),
        ("held.depth", 4),
        ("reach", 100.0),
        ("slices.0.points.0.loss", 1.0),
        ("sha256", ...),
        ("sha256", "0" * 64),
    ):
        raw = json.loads(law_text(law))
        _edit(raw, field, value)
        path.write_text(json.dumps(raw))
        with pytest.raises(ValueError, match=r"law\.json was changed after it was fitted; fit it again"):
            load_law(path)


def test_a_law_laid_out_in_another_way_is_the_same(law, tmp_path):
    raw = json.loads(law_text(law))
    raw["level"], raw["reach"] = raw.pop("level"), int(raw["reach"])  # another order, 10 for 10.0
    (tmp_path / "law.json").write_text(json.dumps(raw))
    assert load_law(tmp_path / "law.json") == law


def test_a_folder_that_is_not_there_is_made(law, tmp_path):
    law.save(tmp_path / "absent" / "more" / "law.json")
    assert load_law(tmp_path / "absent" / "more" / "law.json") == law


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^cannot write \S*/file/law\.json: \S*/file is not a folder$"):
        write_text("{}", tmp_path / "file" / "law.json")
    (tmp_path / "law.json").mkdir()
    with pytest.raises(ValueError, match=r"^cannot write \S*/law\.json: Is a directory$"):
        write_text("{}", tmp_path / "law.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "law.json"]
