"""The perfect expert of every task is never taken for a policy that fails."""

import pytest

from envs.tabletop import TASK_NAMES
from envs.tabletop.env import TabletopEnv
from tests.support.experts import interruption

DEVELOPMENT = 1_000_000


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_tabletops_expert_is_never_interrupted(task):
    env = TabletopEnv(task, image_size=None)
    assert (env.control_hz, env.patience, env.correction_limit) == (12.5, 16, 170)
    assert [interruption(env, DEVELOPMENT + number) for number in range(10)] == [None] * 10
