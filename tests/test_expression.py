"""Arithmetic on columns: what it computes, what it refuses, and that it evaluates nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperp.expression import columns_in, parse_expression

COLUMNS = {
    "lr": np.array([0.01, 0.02]),
    "B": np.array([4.0, 16.0]),
    "wd": np.array([0.1, 0.0]),
    "lambda": np.array([2.0, 3.0]),
    "optim.eps": np.array([1.0, 2.0]),
    "batch size": np.array([8.0, 32.0]),
    "log": np.array([5.0, 6.0]),
}


def compute(text: str) -> np.ndarray | np.float64:
    return parse_expression(text, list(COLUMNS), "x")(COLUMNS.__getitem__)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr/sqrt(B)", [0.005, 0.005]),
        ("2048*B", [8192, 32768]),
        ("-B**2 + 1e1", [-6, -246]),
        ("B / (lr * lambda)", [200, 16 / 0.06]),
        ("B/(lr*wd)", [4000, np.inf]),
        ("`batch size`/B", [2, 2]),
        ("optim.eps-.5", [0.5, 1.5]),
        ("log2(B)+log(exp(B))+log10(100)", [8, 22]),
        ("log+1", [6, 7]),
        ("B**-0.5", [0.5, 0.25]),
        ("  (\n((B)))", [4, 16]),
        ("9**9**9**9 + 0*B", [np.inf, np.inf]),
        ("64", 64),
    ],
)
def test_expressions_mean_what_they_do_in_mathematics(text, value):
    np.testing.assert_allclose(compute(text), value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr/sqrt(Bs)", "no column 'Bs' at character 9; did you mean B"),
        ("batch size/2", "no column 'batch' at character 1; did you mean `batch size`"),
        ("`batchsize`*2", "no column 'batchsize' at character 1; did you mean `batch size`"),
        ("q*2", "no column 'q' at character 1; there are lr, B, wd"),
        ("lr^2", r"'\^' at character 3 is not allowed \(a power is \*\*\)"),
        ("lr//2", "'/' at character 4"),
        ("lr/", "nothing follows '/' at character 3"),
        ("lr*(B", r"'\(' at character 4 is never closed"),
        ("lr)", r"'\)' at character 3 closes nothing"),
        ("lr B", "a sign is missing before 'B' at character 4"),
        ("2(lr)", r"a sign is missing before '\(' at character 2"),
        ("sin(lr)", "no function 'sin' at character 1; allowed are"),
        ("sqrt()", "'sqrt' at character 1 does not belong there"),
        ("sqrt(*lr)", r"'\*' at character 6"),
        ("lr if B", "'if' at character 4"),
        ("lr.real", "no column 'lr.real'"),
        ("__import__('os')", '"\'" at character 12 is not allowed'),
        ("`lr", "'`' at character 1 is not allowed"),
        ("2lr", "'2lr' at character 1"),
        ("lr, B", "',' at character 3"),
        ("lr == B", "'=' at character 4"),
        ("", "must be a column or an expression"),
        ("9" * 400, "too large a number"),
        ("1+" * 300 + "1", "at most 500 characters"),
    ],
)
def test_a_wrong_word_is_named_with_its_place(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        compute(text)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="lrBwd()*+-/.e12` _[]{}'\":=,@%sqt\n", max_size=40))
def test_any_text_is_a_number_or_one_line(text):
    try:
        value = compute(text)
    except ValueError as error:
        line = str(error)
        value = np.float64(0)
    else:
        line = ""
    assert np.asarray(value).dtype == np.float64
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("B*2048", 2048.0),
        ("2*B/4", 0.5),
        ("B", 1.0),
        ("B+1", None),
        ("B**2", None),
        ("-B", None),
        ("lr*B", None),
    ],
)
def test_a_multiple_of_one_column_knows_its_factor(text, factor):
    assert parse_expression(text, list(COLUMNS), "x").factor == factor


def test_the_columns_of_an_expression_are_known_without_a_table():
    assert columns_in("sqrt(lr)/`batch size`*2") == ["lr", "batch size"]
    assert columns_in("not ^ one") == []
