"""Whether a gripper pointing straight down can be brought to a place, by inverse kinematics."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from envs import se3
from envs.tabletop import robot
from envs.tabletop.expert import DOWN, angle_between, tool_rotation
from envs.tabletop.ik import ROTATION_WEIGHT_M, BimanualIK

HEADINGS = tuple(np.pi / 2 + np.linspace(-1.2, 1.2, 5))
"""Tool headings tried; +y is pi / 2."""
ROUNDS = 4
"""Solver calls from the last result: one call stops after few steps."""
REACHED_M = 0.005


@lru_cache(maxsize=1)
def _solver() -> BimanualIK:
    return BimanualIK()


def reach_errors(position: np.ndarray) -> np.ndarray:
    """Least error of each arm's tool pointing down at a world position [3], [2]: m, with 0.2 m a radian."""
    solver = _solver()
    errors = np.full(2, np.inf)
    for heading in HEADINGS:
        goal = tool_rotation(float(heading), DOWN)
        joints = robot.HOME_JOINTS.copy()
        quats = np.tile(se3.matrix_to_quat(goal), (2, 1))
        for _ in range(ROUNDS):
            joints = solver.solve(joints, np.tile(position, (2, 1)), quats)
        reached, rotations = solver.forward(joints)
        turned = [ROTATION_WEIGHT_M * angle_between(rotation, goal) for rotation in rotations]
        errors = np.minimum(errors, np.linalg.norm(reached - position, axis=1) + turned)
    return errors


def reachable(position: np.ndarray, margin_m: float) -> tuple[bool | None, bool | None]:
    """For the left and the right arm: True within `REACHED_M`, False beyond the margin, None between."""
    left, right = (
        True if error < REACHED_M else False if error > max(margin_m, 2 * REACHED_M) else None
        for error in reach_errors(position).tolist()
    )
    return left, right
