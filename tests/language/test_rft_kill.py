"""A selection that SIGKILL ends at many points, and that goes on each time, ends as an unbroken one."""

import os
import signal
import time

import numpy as np
import pytest

from rl_lab.drivers.rft_selection import RFTSelection
from tests.language.test_rft_selection import JUDGED, judge, result, write_run

KILLS = 8


def begin(run):
    """A child of this process, which has imported everything, selects slowly enough to be killed at work."""
    child = os.fork()
    if child == 0:
        try:
            RFTSelection(run, JUDGED, judge).finish(lambda name, done, total: time.sleep(0.02))
        finally:
            os._exit(0)
    return child


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_an_unbroken_one(tmp_path):
    whole, run = (write_run(tmp_path / name) for name in ("whole", "killed"))
    draw, kills = np.random.default_rng(0), 0
    for _ in range(KILLS):
        child = begin(run)
        time.sleep(draw.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert kills >= 2, "the selection ended before it was killed; slow it down"
    assert RFTSelection(run, JUDGED, judge).finish() == RFTSelection(whole, JUDGED, judge).finish()
    assert result(run) == result(whole)
