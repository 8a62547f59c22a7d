"""What the commands print of their answers."""

from hyperp.analysis.loss.leverage import CurveRecord, Leverage
from hyperp.analysis.report.text.loss import show_leverage


def test_a_curve_at_a_bound_that_has_not_converged_says_both(capsys):
    curve = CurveRecord.model_construct(
        name="muon",
        parameters={"E": 1.0, "A": 2.0, "b": 0.1},
        scatter=0.01,
        points=5,
        flops=(1e12, 1e15),
        losses=(2.0, 3.0),
        dropped={},
        edges=0,
        at_bounds=["E = 0"],
        converged=False,
    )
    answer = Leverage.model_construct(
        over="optimizer", metric="loss", baseline=curve, comparisons=[], unfitted=[], level=0.95
    )
    show_leverage(answer)
    lines = capsys.readouterr().out.splitlines()
    assert "muon: E = 0" in lines
    assert "muon: not converged" in lines
