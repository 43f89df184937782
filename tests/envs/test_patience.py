"""The perfect expert of every task is never taken for a policy that fails."""

import numpy as np
import pytest

from envs.rollback import FailureDetector, RollbackConfig, scripted_expert
from envs.tabletop import TASK_NAMES
from envs.tabletop.env import TabletopEnv

DEVELOPMENT = 1_000_000


def interruption(env, seed):
    """What the detector says of an episode of the expert; None: nothing, and it succeeds."""
    env.reset(seed=seed)
    detector = FailureDetector(RollbackConfig(), env.patience)
    for command in scripted_expert.commands(env, seed, np.zeros(0)):
        env.advance(command)
        if env.success:
            return None
        if (name := detector.update(env.diagnose(), env.step_count)) is not None or env.step_count >= env.step_limit:
            return name or "timeout"
    return "gave up"


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_tabletops_expert_is_never_interrupted(task):
    env = TabletopEnv(task, image_size=None)
    assert (env.control_hz, env.patience, env.correction_limit) == (12.5, 16, 170)
    assert [interruption(env, DEVELOPMENT + number) for number in range(10)] == [None] * 10
