"""What is known of a command while it runs and after it was killed: its step, and its seconds."""

import json

import pytest

from hyperp.rundir import heartbeat
from hyperp.sweeps.plan.command_section import Progress
from hyperp.sweeps.trainers.attempts import FILE, Attempts
from hyperp.sweeps.trainers.output import OutputFollower


def test_the_bar_of_an_evaluation_does_not_set_the_step_back(tmp_path):
    log = tmp_path / "output.log"
    follower = OutputFollower(log, Progress(pattern=r"(?P<step>\d+)/(?P<steps>\d+) \["), None, None)
    seen = []
    for printed in ("\r  0/512 [00:00\r", "\r200/512 [00:05\n", "\r  3/32 [00:00\r", "\r512/512 [00:09\n"):
        with log.open("a") as file:
            file.write(printed)
        follower.update()
        seen.append((follower.step, follower.steps))
    assert seen == [(0, 512), (200, 512), (200, 512), (512, 512)]


def test_an_attempt_may_begin_before_the_step_at_which_the_last_one_ended(tmp_path):
    log = tmp_path / "output.log"
    follower = OutputFollower(log, Progress(pattern=r"step (?P<step>\d+)"), 512, None)
    follower.step = 300
    log.write_text("step 200\n")
    assert follower.update()
    assert follower.step == 200


def test_an_attempt_that_was_killed_counts_until_its_last_heartbeat(tmp_path):
    first = Attempts().begin(tmp_path, resuming=False)
    assert first.began is not None
    beat = {"step": 70, "steps": 100, "tokens_per_second": 1.0, "time": first.began + 20}
    (tmp_path / heartbeat.FILE).write_text(json.dumps(beat))
    second = Attempts.load(tmp_path).begin(tmp_path, resuming=True)
    assert (second.started, second.resumed, second.step) == (2, 1, 70)
    assert second.seconds == pytest.approx(20)
    ended = second.end(tmp_path, 5.0, 100)
    assert (ended.seconds, ended.step, ended.began) == (pytest.approx(25), 100, None)
    # An attempt that did end is not counted once more, whatever heartbeat lies there.
    assert Attempts.load(tmp_path).begin(tmp_path, resuming=False).seconds == pytest.approx(25)


def test_a_heartbeat_from_before_the_attempt_is_not_of_it(tmp_path):
    first = Attempts().begin(tmp_path, resuming=False)
    assert first.began is not None
    beat = {"step": 70, "steps": 100, "tokens_per_second": 1.0, "time": first.began - 20}
    (tmp_path / heartbeat.FILE).write_text(json.dumps(beat))
    again = Attempts.load(tmp_path).begin(tmp_path, resuming=False)
    assert (again.seconds, again.step) == (0.0, 0)
    (tmp_path / FILE).write_text('{"started": 3}')  # of an older version
    assert Attempts.load(tmp_path).begin(tmp_path, resuming=False).started == 4
