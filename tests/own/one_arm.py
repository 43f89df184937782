"""One arm whose tool is the point of `examples/reach.py`: commands and states are `ee` poses of 8 numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.declared import Declaration
from tests.own import reach


def pose(place: np.ndarray) -> np.ndarray:
    """A tool at a place of the table that looks down with an open gripper."""
    return np.array([*place, 0.1, 0.0, 1.0, 0.0, 0.0, 1.0])


class OneArm(reach.Reach):
    action_space = spaces.Box(-2.0, 2.0, (8,), np.float64)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        return super().step(np.clip(action[:2], 0.0, 1.0))


def expert(env: Any, observation: Any) -> np.ndarray:
    return pose(env.unwrapped.goal)


def make(task: str, variant: str) -> Declaration:
    made = reach.make("default", variant)
    return replace(made, env=OneArm(), numbers="ee", state=lambda env: pose(env.unwrapped.point), expert=expert)
