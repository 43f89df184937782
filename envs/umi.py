"""The frames of the Hy-Embodied UMI recordings, and poses from and to RoboTwin's (released Hy-VLA documentation).

World axes (forward, left, up) are (x, y, z) for UMI and (y, -x, z) for RoboTwin. A UMI gripper counts millimetres
closed, 0 (open) to 90; RoboTwin's is 1 (open) to 0. W and P are the released matrices; the released table of gripper
axes, UMI (y, z, x) and RoboTwin (x, y, z), would need P transposed.
"""

from __future__ import annotations

import numpy as np

from envs.se3 import matrix_to_quat, quat_to_matrix, split_arms

UMI_STROKE_MM = 90.0
"""Reading of a closed UMI gripper."""
WORLD = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""W: RoboTwin world coordinates to UMI world coordinates."""
LOCAL = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""P: the columns are the axes of the UMI gripper in those of the RoboTwin gripper."""


def umi_from_robotwin(ee: np.ndarray) -> np.ndarray:
    """p' = W p, R' = W R P, gripper_mm = (1 - gripper_01) * 90 of two-arm `ee` poses, [..., 16] -> [..., 16]."""
    arms = _change_frame(ee, WORLD, LOCAL)
    arms[..., 7] = (1 - arms[..., 7]) * UMI_STROKE_MM
    return arms.reshape(np.shape(ee))


def robotwin_from_umi(ee: np.ndarray) -> np.ndarray:
    """Inverse of `umi_from_robotwin`, [..., 16] -> [..., 16]."""
    arms = _change_frame(ee, WORLD.T, LOCAL.T)
    arms[..., 7] = 1 - arms[..., 7] / UMI_STROKE_MM
    return arms.reshape(np.shape(ee))


def _change_frame(ee: np.ndarray, world: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Both arms, [..., 2, 8], in other world and gripper axes; the gripper reading stays."""
    arms = split_arms(np.asarray(ee, dtype=np.float64))
    quat = matrix_to_quat(world @ quat_to_matrix(arms[..., 3:7]) @ local)
    return np.concatenate([arms[..., :3] @ world.T, quat, arms[..., 7:]], axis=-1)
