"""A second opinion: which laws answer, how far they are from home, and what they say together."""

import math

import pytest

from hyperp.analysis import fit_law, opinion

RUN = {"tokens": 1e13, "batch_tokens": 33.6e6, "width": 2560, "depth": 26}


def rows_of(found):
    return {row.law.id: row for row in found.rows}


def test_laws_of_the_optimizer_stand_apart_from_the_others():
    found = opinion("muonh", lr=0.0037, **RUN)
    same = [row.law.id for row in found.rows if row.same_optimizer]
    assert same == ["hyperp", "marin-muonh-2026-05", "marin-muonh-2026-08"]
    rates = [row.lr for row in found.rows if row.same_optimizer]
    assert found.headline() == f"3 laws of muonh say {rates[0]:.3g} to {rates[2]:.3g}, 1.26 times apart"
    for row in found.rows:
        assert row.lr is None or row.lr > 0
        assert ("optimizer adamw" in row.mismatch) == (row.law.optimizer == "adamw")
        assert row.to_plan == (pytest.approx((row.lr or 0) / 0.0037) if row.same_optimizer else None)


def test_each_size_has_its_extrapolation_factor():
    row = rows_of(opinion("muonh", **RUN))["hyperp"]
    assert row.extrapolation == {
        "tokens": pytest.approx(1e13 / 166.4e9),
        "batch_tokens": pytest.approx(33.6e6 / 2**21),
        "depth": pytest.approx(26 / 24),
        "width": 1.0,
    }
    assert row.farthest == pytest.approx(1e13 / 166.4e9)


def test_the_words_name_agreement_silence_and_distance():
    words = "\n".join(opinion("muonh", lr=0.001, **RUN).words)
    assert "The planned rate of 0.001 is 3.7 times below the lowest of them" in words
    assert "All agree that the rate falls with tokens, exponents from -0.395 to -0.32" in words
    assert "Only hyperp depends on depth: the rate falls, exponent -0.5" in words
    assert "More than 10 times beyond their range: hyperp (60.1 times)" in words
    assert "lies among them" in "\n".join(opinion("muonh", lr=0.004, **RUN).words)


def test_laws_that_disagree_on_a_sign_are_said_to():
    reference = {"lr": 1e-3, "params": 1e9, "tokens": 1e10}
    words = opinion("adamw", reference=reference, params=2e9, tokens=1e11).words
    assert "They disagree on tokens: exponents from -0.32 to 0.307" in words


def test_what_differs_is_listed():
    found = rows_of(opinion("adamw", schedule="linear", parametrization="standard", **RUN))
    assert found["minicpm"].mismatch == ["schedule wsd", "parametrization mup"]
    assert found["steplaw"].mismatch == [
        "schedule cosine",
        f"its batch would be {0.58 * 1e13**0.571:.3g} tokens",
    ]
    batch = 0.58 * 1e11**0.571
    near = rows_of(opinion("adamw", params=1e9, tokens=1e11, batch_tokens=1.1 * batch))
    assert near["steplaw"].mismatch == []


def test_a_rule_needs_a_reference_of_its_optimizer_and_tells_what_it_leaves_out():
    assert rows_of(opinion("adamw", **RUN))["mup"].needs == ["a reference run of adamw"]
    reference = {"lr": 0.01, "width": 1280, "tokens": 1e12}
    row = rows_of(opinion("adamw", reference=reference, **RUN))["mup"]
    assert row.lr == pytest.approx(0.005)
    assert row.mismatch == ["silent on tokens, 10 times the reference's"]
    assert rows_of(opinion("adamw", reference=reference, **RUN))["scion"].needs == [
        "a reference run of scion"
    ]
    assert rows_of(opinion("adamw", reference=reference, **RUN))["completed-p"].needs == [
        "batch_tokens of the reference"
    ]


def test_a_law_without_its_sizes_says_what_it_needs():
    row = rows_of(opinion("adamw", tokens=1e10))["steplaw"]
    assert (row.lr, row.needs) == (None, ["params"])
    assert opinion("sso", tokens=1e10).headline().startswith("No law of sso could be evaluated")


def test_parameters_of_a_dense_model_are_assumed_and_said_to_be():
    found = opinion("adamw", **RUN)
    assert found.assumed == [f"params = 12 depth width^2 = {12 * 26 * 2560**2:.3g}, as of a dense model"]
    assert opinion("adamw", params=2e9, **RUN).assumed == []


def test_the_timescale_gives_a_weight_decay_at_the_planned_rate():
    one = opinion("adamw", lr=1e-3, weight_decay=0.1, params=1e9, tokens=1e11, batch_tokens=1e6).decay[0]
    assert one.timescale == pytest.approx(1.084 * 100**-0.527)
    assert one.weight_decay == pytest.approx(1e6 / (1e-3 * one.timescale * 1e11))
    assert one.planned == 0.1
    assert opinion("muonh", lr=1e-3, **RUN).decay == []


def test_your_own_law_stands_beside_the_published_ones(demo):
    found = opinion("muonh", laws=[demo / "law.json"], tokens=5.2e5, batch_tokens=512, width=32, depth=2)
    own = found.own[0]
    assert own.low < own.lr < own.high
    for row in found.rows:
        if row.same_optimizer and row.lr is not None:
            assert row.to_own == {own.name: pytest.approx(row.lr / own.lr)}
            assert row.within_own == {own.name: own.low <= row.lr <= own.high}
    assert found.reference is not None
    assert found.reference.target.width == 32
    far = opinion("muonh", laws=[demo / "law.json"], tokens=5.2e5, width=4096)
    assert (far.own, len(far.declined)) == ([], 1)
    assert "is refused here" in far.declined[0]
    other = opinion("adamw", laws=[demo / "law.json"], tokens=5.2e5)
    assert other.declined == [f"{demo / 'law.json'} is of muonh"]
    assert other.reference is None


def test_sizes_that_your_law_holds_fixed_may_be_left_out(demo):
    found = opinion("muonh", laws=[demo / "law.json"], tokens=5.2e5)
    assert (found.target.batch_tokens, found.target.width, found.target.depth) == (512, 32, 2)
    assert "batch_tokens = 512, as in every slice of your law" in found.assumed
    assert len(found.own) == 1
    without = opinion("muonh", laws=[demo / "law.json"], width=32)
    assert without.declined == [f"{demo / 'law.json'} needs tokens"]


@pytest.fixture(scope="module")
def adamw_law(make_ladder, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "law.json"
    context = {
        "optimizer": "adamw",
        "schedule": "linear",
        "data": "d",
        "metric": "m",
        "parametrization": "raw",
    }
    fit_law(make_ladder(context=context, tokens=(32768, 65536, 131072)), by="tokens").save(path)
    return path


def test_a_law_is_not_confirmed_by_rules_that_scale_its_own_rate(adamw_law):
    name = str(adamw_law)
    found = opinion("adamw", laws=[adamw_law], lr=1e-3, tokens=65536, width=32)
    scaled = [row for row in found.rows if row.starts_from is not None]
    assert {"mup", "completep"} <= {row.law.id for row in scaled}
    assert all(row.starts_from == name and not row.to_own and not row.within_own for row in scaled)
    assert all(row.law.kind == "rule" for row in scaled)
    line = found.reference_words()
    assert line is not None
    assert line.startswith(f"reference: middle of {name}, tokens=65536, batch_tokens=512, width=32")
    words = "\n".join(found.words)
    assert f"Not counted, since they start from {name} itself: " in words
    assert found.headline().startswith("2 laws of adamw say ")
    inside = [row.within_own[name] for row in found.rows if row.within_own]
    assert len(inside) == 2
    assert f"{sum(inside)} of 2 lie in the interval of {name}" in words


def test_a_law_that_is_refused_is_said_to_be_the_reference_all_the_same(adamw_law):
    found = opinion("adamw", laws=[adamw_law], width=512, tokens=65536)
    assert found.own == []
    line = found.reference_words()
    assert line is not None
    assert line.endswith(f"; {adamw_law} itself says nothing at the target")


def test_rules_of_one_reference_count_as_one(adamw_law):
    reference = {"width": 64, "depth": 2, "lr": 0.02}
    found = opinion("adamw", laws=[adamw_law], reference=reference, width=32, depth=2, tokens=65536)
    rows = [row for row in found.rows if row.same_optimizer and row.lr is not None]
    rules = [row for row in rows if row.law.kind == "rule"]
    assert len(rules) > 1
    assert all(row.starts_from is None and row.within_own for row in rules)
    laws = len(rows) - len(rules)
    assert found.headline().startswith(f"{laws} laws of adamw and {len(rules)} rules about one reference, ")
    assert f" of {laws + 1} lie in the interval of " in "\n".join(found.words)
    line = found.reference_words()
    assert line is not None
    assert line.startswith("reference: as given, ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "muonhh", "tokens": 1e9}, "optimizer must be one of .* did you mean muonh"),
        ({"optimizer": "muonh", "schedule": "cosin", "tokens": 1e9}, "schedule .* did you mean cosine"),
        ({"optimizer": "muonh", "lr": math.nan, "tokens": 1e9}, "lr must be finite and positive, got nan"),
        ({"optimizer": "muonh", "lr": 0.0, "tokens": 1e9}, "lr must be finite and positive, got 0.0"),
        ({"optimizer": "muonh", "weight_decay": -1.0, "tokens": 1e9}, "weight_decay .* got -1.0"),
        ({"optimizer": "muonh", "tokens": 0}, "tokens must be finite and positive, got 0"),
        ({"optimizer": "muonh"}, "tokens, batch_tokens, width, depth or params must be given"),
    ],
)
def test_bad_input_names_the_field_and_the_value(given, message):
    with pytest.raises(ValueError, match=message):
        opinion(**given)


def test_an_opinion_is_a_table_for_a_notebook():
    frame = opinion("muonh", lr=0.0037, **RUN).to_frame()
    assert list(frame["law"][:3]) == ["hyperp", "marin-muonh-2026-05", "marin-muonh-2026-08"]
    assert frame["lr"].notna().all()
