"""The arithmetic of progress, on events made by hand."""

import time

import pytest

from hyperp.sweeps.local.pool import Idle, RunEnded, RunProgressed, RunStarted
from hyperp.sweeps.local.progress import LineDisplay, Tally, format_duration
from hyperp.sweeps.plan.plan import make_plan


@pytest.fixture
def points():
    """Three runs of 1, 1 and 2 parts of the work."""
    plan = make_plan(
        [
            "+sweep.blocks.a.points=[{scale.tokens:32768,seed:0},{scale.tokens:32768,seed:1},{scale.tokens:65536}]"
        ]
    )
    a, b, c = plan.points
    assert c.flops == pytest.approx(2 * a.flops, rel=1e-12, abs=0)
    return a, b, c


def test_work_is_weighted_by_its_cost_and_ended_runs_count_whole(points):
    a, b, c = points
    tally = Tally(points)
    assert tally.done() == 0
    for event, expected in (
        (Idle(), 0),
        (RunStarted(0, c.run_id), 0),
        (RunProgressed(0, c.run_id, 32, 128, 1e5), 0.25 * 2 / 4),
        (RunProgressed(0, c.run_id, 64, 128, 1e5), 0.5 * 2 / 4),
        (RunStarted(1, a.run_id), 0.5 * 2 / 4),
        (RunEnded(1, a.run_id, "diverged", "why"), 0.5 * 2 / 4 + 1 / 4),
        (RunEnded(1, b.run_id, "failed", "why"), 0.5 * 2 / 4 + 2 / 4),
        (RunEnded(0, c.run_id, "finished", None), 1),
    ):
        tally.update(event)
        assert tally.done() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert tally.line() == "3 of 3 runs: 1 finished, 1 diverged, 1 failed"


def test_counts_are_of_what_ended(points):
    a, b, _ = points
    tally = Tally(points)
    assert tally.line() == "0 of 3 runs: 0 finished, 0 diverged, 0 failed"
    tally.update(RunProgressed(0, a.run_id, 1, 64, 1e5))
    tally.update(RunEnded(0, a.run_id, "finished", None))
    tally.update(RunEnded(0, b.run_id, "finished", None))
    assert tally.line() == "2 of 3 runs: 2 finished, 0 diverged, 0 failed"


@pytest.mark.parametrize(
    ("step", "elapsed", "expected"),
    [
        (0, 100, "time left unknown"),
        (1, 100, "time left unknown"),  # half of 1/128 is below the half per cent
        (64, 60, "about 3 min left"),  # a quarter in one minute
        (128, 60, "about 60 s left"),
        (32, 3600, "about 7.0 h left"),
    ],
)
def test_time_left_is_what_the_mean_speed_so_far_makes_it(points, step, elapsed, expected):
    tally = Tally(points)
    tally.update(RunProgressed(0, points[2].run_id, step, 128, 1e5))
    tally.start = time.monotonic() - elapsed
    assert tally.time_left() == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (86400, "24.0 h")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert format_duration(seconds) == text


def test_lines_name_failures_at_once_and_sum_up_at_the_end(points, capsys):
    a, b, _ = points
    with LineDisplay(points) as display:
        display.show(RunEnded(0, a.run_id, "failed", "worker killed by signal 9"))
        assert capsys.readouterr().err == f"failed {a.run_id} (a  lr {a.lr:.4g}): worker killed by signal 9\n"
        display.show(RunEnded(0, b.run_id, "finished", None))
        assert capsys.readouterr().err == ""
        display.last -= 11
        display.show(Idle())
        assert capsys.readouterr().err == (
            "2 of 3 runs: 1 finished, 0 diverged, 1 failed; 50% of the work, about 0 s left\n"
        )
    assert capsys.readouterr().err == "2 of 3 runs: 1 finished, 0 diverged, 1 failed; 0 s\n"
