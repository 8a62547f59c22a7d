"""The registry of published laws: each gives the numbers that its source gives."""

import math

import pandas as pd
import pytest

from hyperp.analysis.registry.law import load_published, published_laws
from hyperp.analysis.registry.target import Reference, Target, read_reference, read_target
from tests.analysis.law_command import shared_table

LAWS = {law.id: law for law in published_laws()}
# The two large runs of marin: 67B-A2B, 8192 sequences of 4096 tokens a step; 535B-A23B.
SMALLER = Target(tokens=1.007e13, batch_tokens=8192 * 4096, width=2560, depth=26)
LARGER = Target(tokens=18e12, batch_tokens=46.1e6, width=6144, depth=48)


@pytest.mark.parametrize(
    ("law", "target", "rate", "tolerance"),
    [
        ("marin-muonh-2026-05", SMALLER, 0.003732, 2e-4),  # 0.003733 was used
        ("marin-muonh-2026-05", LARGER, 0.00305, 2e-3),
        ("marin-muonh-2026-08", SMALLER, 0.00465, 1e-3),
        ("marin-muonh-2026-08", LARGER, 0.003291, 1e-3),  # used; tokens and batch are known to 3 digits
        ("hyperp", Target(tokens=1e13, batch_tokens=33.6e6, depth=26), 0.00369, 3e-3),
        ("hyperp", LARGER, 0.00264, 2e-3),
    ],
)
def test_sphere_laws_give_the_rates_of_the_large_runs(law, target, rate, tolerance):
    assert LAWS[law].evaluate(target) == pytest.approx(rate, rel=tolerance)


def test_hyperp_is_its_own_fit_in_tokens():
    for tokens in (10.4e9, 166.4e9):
        target = Target(tokens=tokens, batch_tokens=2**21, depth=8)
        assert LAWS["hyperp"].evaluate(target) == pytest.approx(24.27 * tokens**-0.32, rel=0.01)


def test_step_law_at_sizes_where_its_rate_was_published():
    # 1.4e-3 and 3.2e-4 stand in a public training script that cites the law, for 10B tokens.
    for params, rate in ((0.44e9, 1.4e-3), (3.65e9, 3.2e-4)):
        target = Target(params=params, tokens=1e10)
        assert LAWS["steplaw"].evaluate(target) == pytest.approx(rate, rel=0.05)


def test_step_law_lies_near_the_best_rate_of_its_own_runs():
    runs = pd.read_csv(shared_table("steplaw_dense_lr_bs_loss.csv"))
    octaves = []
    for _, cell in runs.groupby(["N", "D"]):
        best = cell.sort_values("smooth loss").iloc[0]
        target = Target(params=float(best["N"]), tokens=float(best["D"]))
        octaves.append(math.log2(LAWS["steplaw"].evaluate(target) / float(best["lr"])))
    assert len(octaves) == 17
    assert max(map(abs, octaves)) < 1.0  # neighbouring rates of the grid are half an octave apart


def test_deepseek_takes_its_compute_from_the_shape_of_the_model():
    target = Target(tokens=2e12, width=4096, depth=30, sequence_length=4096)
    compute = (72 * 30 * 4096**2 + 12 * 30 * 4096 * 4096) * 2e12
    assert target.compute == pytest.approx(compute)
    assert LAWS["deepseek-llm"].evaluate(target) == pytest.approx(0.3118 * compute**-0.125)


def test_minicpm_gives_the_rate_of_hidden_matrices():
    law = LAWS["minicpm"]
    assert law.evaluate(Target(width=256)) == pytest.approx(0.01)
    assert law.evaluate(Target(width=2304)) == pytest.approx(0.01 / 9)
    assert "256/width" in str(law.conversion)


def test_rules_scale_a_reference():
    reference = read_reference({"lr": 0.01, "width": 1024, "depth": 8, "tokens": 1e10, "batch_tokens": 2**20})
    target = Target(width=4096, depth=32, tokens=1.6e11, batch_tokens=2**22)
    assert LAWS["mup"].evaluate(target, reference) == pytest.approx(0.0025)
    assert LAWS["completep"].evaluate(target, reference) == pytest.approx(0.0025)
    assert LAWS["completed-p"].evaluate(target, reference) == pytest.approx(0.0025 * 2 / 4)
    assert LAWS["scion"].evaluate(target, reference) == pytest.approx(0.01 * 4**0.62 * 16**-0.56)
    with pytest.raises(ValueError, match="reference must be given for mup"):
        LAWS["mup"].evaluate(target)
    with pytest.raises(ValueError, match="reference must give tokens for scion"):
        LAWS["scion"].evaluate(target, Reference(lr=0.01, target=Target(batch_tokens=2**20)))


def test_a_law_stops_at_its_cap():
    law = LAWS["marin-muonh-2026-05"]
    assert law.evaluate(Target(tokens=1e8, batch_tokens=1e8, width=512)) == law.cap == 0.05


def test_extrapolation_counts_both_ways_from_the_range():
    tokens = LAWS["hyperp"].quantities["tokens"]
    assert tokens.extrapolation(10.4e9 / 4) == pytest.approx(4)
    assert tokens.extrapolation(50e9) == 1
    assert tokens.extrapolation(166.4e9 * 3) == pytest.approx(3)
    assert LAWS["marin-muonh-2026-05"].quantities["tokens"].extrapolation(1e12) is None


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_law_says_what_a_reader_needs_to_check_it(law):
    assert law.form
    assert law.convention
    for source in law.sources:
        assert "arXiv " in source or "github.com/" in source
    for name, quantity in law.quantities.items():
        assert quantity.unit, name
        assert quantity.low is None or quantity.high is None or quantity.low <= quantity.high


def test_a_law_file_with_a_wrong_field_is_refused():
    text = "form: f\noptimizer: adamw\nconvention: c\nsources: [s]\ntitle: t\ncoefficient: 1\nquantities: "
    with pytest.raises(ValueError, match=r"odd: quantities must be of tokens, .* got wdith"):
        load_published(text + "{wdith: {exponent: 1, unit: u}}", "odd")
    with pytest.raises(ValueError, match=r"coefficient must be given except for a rule, got 1\.0 of a rule"):
        load_published("kind: rule\n" + text + "{}", "odd")


def test_targets_reject_what_is_no_size():
    with pytest.raises(ValueError, match="tokens must be finite and positive, got nan"):
        read_target({"tokens": math.nan})
    with pytest.raises(ValueError, match=r"size must be one of .* got 'widht'; did you mean width"):
        read_target({"widht": 1024})
    with pytest.raises(ValueError, match=r"reference\.lr must be given"):
        read_reference({"width": 1024})
