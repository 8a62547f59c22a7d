import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperp.scale import Scale

SIZES = {"width": 32, "depth": 2, "tokens": 2**15, "batch_tokens": 512}


@pytest.mark.parametrize("field", ["width", "depth", "tokens", "batch_tokens", "granularity", "sparsity"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True, "8", None, float("nan"), float("inf")])
def test_a_size_that_is_no_positive_whole_number_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be a whole number of at least 1, got"):
        Scale(**{**SIZES, field: value})


def test_whole_floats_become_the_same_scale():
    scale = Scale(width=32.0, depth=2, tokens=1e6, batch_tokens=5e2)  # pyright: ignore[reportArgumentType]
    assert scale == Scale(width=32, depth=2, tokens=1_000_000, batch_tokens=500)
    assert all(type(value) is int for value in asdict(scale).values())
    assert hash(scale) == hash(Scale(32, 2, 1_000_000, 500))


def test_a_run_shorter_than_one_step_is_refused():
    with pytest.raises(ValueError, match="tokens must be at least batch_tokens=512"):
        Scale(width=32, depth=2, tokens=511, batch_tokens=512)


@given(st.integers(1, 10**12), st.integers(1, 10**7))
def test_steps_are_the_most_that_fit_into_the_tokens(tokens, batch_tokens):
    scale = Scale(width=8, depth=1, tokens=max(tokens, batch_tokens), batch_tokens=batch_tokens)
    assert scale.steps >= 1
    assert scale.tokens_trained <= scale.tokens < scale.tokens_trained + batch_tokens


def test_a_scale_is_a_row():
    row = asdict(Scale(**SIZES))
    assert row == {**SIZES, "granularity": 1, "sparsity": 1}
    assert Scale(**row) == Scale(**SIZES)


def test_the_arithmetic_modules_import_neither_torch_nor_pandas():
    modules = "hyperp.scale, hyperp.flops, hyperp.parametrization, hyperp.schedule"
    check = f"import sys, {modules}; assert not {{'torch', 'pandas', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
