"""Episodes of scripted experts under the detector of failures."""

import numpy as np

from envs.rollback import FailureDetector, RollbackConfig, scripted_expert


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
