"""A control loop and a policy that predicts in another process."""

import multiprocessing
import time

import numpy as np
import pytest

from envs.control import control
from envs.execution import Execution

HZ, HORIZON = 100.0, 1000


def answer(pipe, seconds):
    """A policy's process: the chunk of an observed time t holds the numbers t, t + 1, ..."""
    while (observed := pipe.recv()) is not None:
        time.sleep(seconds)
        if observed < 0:
            pipe.send(None)
            return
        pipe.send(observed + np.arange(HORIZON, dtype=float)[:, None])


class Clockwork:
    """A robot that knows how often it was commanded, and can be slow once."""

    def __init__(self, slow_at=None):
        self.commands, self.slow_at = [], slow_at

    def observe(self):
        return len(self.commands)

    def advance(self, command):
        if len(self.commands) == self.slow_at:
            time.sleep(5 / HZ)
        self.commands.append(command)


@pytest.fixture
def policy():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=answer, args=(there, 0.08), daemon=True)
    process.start()

    def predict(observed, number):
        here.send(observed)
        chunk = here.recv()
        if chunk is None:
            raise RuntimeError("the policy has died")
        return chunk

    yield predict
    here.send(None)
    process.join(5)


@pytest.mark.parametrize("join", ["jump", "stitch", "ensemble"])
def test_the_robot_moves_on_while_another_process_predicts(policy, join):
    robot = Clockwork()
    log = control(robot, policy, Execution(execute=4, join=join), hz=HZ, poses=False, steps=50)
    assert len(log.commands) == 50 and log.stalls == 0
    assert np.concatenate(log.commands) == pytest.approx(np.arange(50)), "chunks that agree go on as one motion"
    assert log.late[0] == 0 and min(log.late[1:]) >= 1, "steps are taken while the policy predicts"
    assert min(log.latencies_s) >= 0.08


def test_who_waits_holds_its_command(policy):
    log = control(Clockwork(), policy, Execution(execute=4), hz=HZ, poses=False, steps=30)
    assert log.stalls >= 3 and log.commands[4:6] == [log.commands[3]] * 2


def test_a_step_that_takes_too_long_is_a_missed_deadline_and_the_next_do_not_hurry(policy):
    began = time.perf_counter()
    log = control(Clockwork(slow_at=10), policy, Execution(join="jump"), hz=HZ, poses=False, steps=20)
    assert log.missed >= 1 and time.perf_counter() - began >= (19 + 4) / HZ


def test_it_ends_when_it_is_done_or_the_policy_fails(policy):
    robot = Clockwork()
    log = control(
        robot, policy, Execution(join="jump"), hz=HZ, poses=False, steps=50, done=lambda: len(robot.commands) == 7
    )
    assert len(log.commands) == 7
    with pytest.raises(RuntimeError, match="has died"):
        control(Clockwork(), lambda *_: policy(-1, 0), Execution(), hz=HZ, poses=False, steps=5)


def test_impossible_settings_are_named():
    wrong = (
        *((Execution(latency=2), HZ, "measures it"), (Execution(), 0.0, "hz is 0")),
        (Execution(join="guide"), HZ, "not known before"),
    )
    for settings, hz, text in wrong:
        with pytest.raises(ValueError, match=text):
            control(Clockwork(), lambda *_: np.zeros((4, 1)), settings, hz=hz, poses=False, steps=1)
