from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperp.schedule import Schedule

DECAYING = ["linear", "cosine"]


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
def test_without_warm_up_the_first_step_is_at_the_peak(shape):
    assert Schedule(shape).factor(0, 1000) == 1.0
    assert Schedule(shape).factor(0, 1) == 1.0


def test_linear_decay_is_the_stated_line():
    schedule = Schedule("linear", final=0.1)
    for step in range(200):
        assert schedule.factor(step, 200) == pytest.approx(1 - 0.9 * step / 200, rel=1e-12)


@pytest.mark.parametrize("shape", DECAYING)
def test_the_end_comes_within_one_step_of_final(shape):
    schedule = Schedule(shape, final=0.1)
    assert 0.1 < schedule.factor(9_999, 10_000) < 0.1 + 1e-4


def test_cosine_is_halfway_at_half_time():
    assert Schedule("cosine", final=0.2).factor(500, 1000) == pytest.approx(0.6, rel=1e-12)


@given(
    shape=st.sampled_from(["linear", "cosine", "constant"]),
    total=st.integers(1, 300),
    share=st.floats(0, 0.99),
    final=st.floats(0, 1),
)
def test_rises_to_the_peak_then_never_rises_again(shape, total, share, final):
    schedule = Schedule(shape, warmup_steps=int(share * total), final=final)
    factors = [schedule.factor(step, total) for step in range(total)]
    peak = schedule.warmup_steps
    assert factors[peak] == 1.0
    assert all(0 < factor <= 1 for factor in factors[: peak + 1])
    assert all(a < b for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b - 1e-15 for a, b in pairwise(factors[peak:]))
    assert all(factor >= final - 1e-15 for factor in factors[peak:])


@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warm_up_that_outlasts_the_run_is_refused(warmup):
    with pytest.raises(ValueError, match=f"warmup_steps must be below the 10 steps of the run, got {warmup}"):
        Schedule(warmup_steps=warmup).factor(0, 10)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shape": "step"}, "^shape must .*linear.*cosine.*constant, got 'step'"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0, got -1"),
        ({"warmup_steps": 1.5}, "warmup_steps must be an integer of at least 0, got 1.5"),
        ({"final": 1.1}, r"final must be a fraction of the peak in \[0, 1\], got 1.1"),
        ({"final": float("nan")}, r"final must be a fraction of the peak in \[0, 1\], got nan"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        Schedule(**options)


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=f"step must be in 0 ... 9, got {step}"):
        Schedule().factor(step, 10)


def test_a_bad_option_by_position_is_named():
    with pytest.raises(ValueError, match=r"^warmup_steps must .* got -1"):
        Schedule("linear", -1)
