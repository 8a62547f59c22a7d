"""Each seed fitted alone: its exponent is that of its own runs, and their interval covers what is true."""

import numpy as np
import pandas as pd
from scipy.stats import sem, t

from hyperp.analysis import fit_law
from hyperp.analysis.law.schema import Law
from hyperp.analysis.report.text.law import diagnostic_lines
from hyperp.analysis.table.validate import Runs
from hyperp.analysis.vocabulary import DEFAULT_METHOD, MethodName

SLOPE = -0.4


def study(rng, seeds=3, skew=0.3, noise=0.01):
    """Four slices of five rates an octave apart; every seed moves each slice's optimum and loss a little."""
    rows = []
    for tokens in (2**16, 2**17, 2**18, 2**19):
        centre = np.log2(0.04) + SLOPE * np.log2(tokens / 2**17)
        for seed in range(seeds):
            moved, base = centre + 0.1 * rng.normal(), 2 + 0.02 * rng.normal()
            for step in range(-2, 3):
                x = round(centre) + step - moved
                loss = base + 0.03 * x**2 * (1 + skew * np.tanh(x)) + noise * rng.normal()
                rows.append(
                    {"tokens": tokens, "seed": seed, "lr": 2.0 ** (round(centre) + step), "loss": loss}
                )
    return pd.DataFrame(rows)


def law_of(frame, method: MethodName = DEFAULT_METHOD) -> Law:
    context = {"status": "finished", "width": 32, "depth": 2, "batch_tokens": 1024, "optimizer": "muonh"}
    return fit_law(Runs(frame.assign(**context), "runs.parquet", "0" * 64), ["tokens"], method=method)


def test_each_value_is_the_law_of_that_seed_alone():
    frame = study(np.random.default_rng(0))
    law = law_of(frame, "shared")
    found = law.by_seed["tokens"]
    for seed, value in found.values.items():
        alone = law_of(frame[frame["seed"] == int(seed)], "shared")
        np.testing.assert_allclose(value, alone.exponents["tokens"].value, rtol=1e-9, atol=1e-12)
        assert not alone.by_seed
    values = np.array(list(found.values.values()))
    np.testing.assert_allclose(found.mean, values.mean(), rtol=1e-12, atol=0)
    ends = t.interval(0.95, len(values) - 1, loc=values.mean(), scale=sem(values))
    np.testing.assert_allclose((found.low, found.high), ends, rtol=1e-9, atol=0)
    assert f"mean {found.mean:.3f}" in "".join(diagnostic_lines(law))


def test_seeds_of_the_hierarchical_law_share_its_basin():
    """Each value lies within the own interval of the seed, and they differ no more than laws of their own."""
    frame = study(np.random.default_rng(0))
    found = law_of(frame).by_seed["tokens"]
    parts = [frame[frame["seed"] == int(seed)] for seed in found.values]
    alone = [law_of(part).exponents["tokens"] for part in parts]
    for value, own in zip(found.values.values(), alone, strict=True):
        assert own.low <= value <= own.high
    assert np.ptp(list(found.values.values())) < 1.5 * np.ptp([own.value for own in alone])


def test_the_interval_over_seeds_covers_a_skewed_truth_and_is_narrower_than_the_law_s():
    rng = np.random.default_rng(1)
    covered, widths = [], []
    for _ in range(60):
        law = law_of(study(rng))
        found, own = law.by_seed["tokens"], law.exponents["tokens"]
        covered.append(found.low <= SLOPE <= found.high)
        widths.append((found.high - found.low) / (own.high - own.low))
    assert np.mean(covered) >= 0.86  # three standard errors below 0.95 of sixty
    assert np.median(widths) < 1


def test_seeds_without_an_optimum_in_every_slice_do_not_count():
    frame = study(np.random.default_rng(2), seeds=4)
    cut = frame[(frame["seed"] != 3) | (frame["tokens"] != 2**18)]
    law = law_of(cut)
    assert sorted(law.by_seed["tokens"].values) == ["0", "1", "2"]
    assert "from each of 3 of 4 seeds alone" in "".join(diagnostic_lines(law))
    low = frame["lr"] <= frame.groupby("tokens")["lr"].transform("median") / 2
    edge = frame[(frame["seed"] != 3) | (frame["tokens"] != 2**18) | low]
    assert sorted(law_of(edge).by_seed["tokens"].values) == ["0", "1", "2"]


def test_one_seed_has_no_spread():
    assert law_of(study(np.random.default_rng(3), seeds=1)).by_seed == {}
