"""Deviation from the expert: NORA-1.5's second reward (arXiv:2511.14659), R_a = -|a - a*|, without training.

|a - a*| is the mean over the commands of a chunk of

    sum over both arms of |p - p*| + 0.5 angle(R, R*) + 0.2 |g - g*|     (metres, radians, gripper 0..1)

Differs from the paper, which takes the L1 norm of normalised actions: these weights are FlowPRO's distance of poses
(arXiv:2606.14409, section 4.2), so that a reward has a unit.
"""

from __future__ import annotations

import numpy as np

from envs.se3 import geodesic_angle, split_arms

ORIENTATION_WEIGHT_M = 0.5
GRIPPER_WEIGHT_M = 0.2


def expert_deviation(chunks: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """Rewards [N], at most 0: chunks of absolute `ee` commands [N, H, 16] beside the expert's [H, 16]."""
    mine, theirs = split_arms(chunks), split_arms(expert)
    position = np.linalg.norm(mine[..., :3] - theirs[..., :3], axis=-1)
    angle = geodesic_angle(mine[..., 3:7], theirs[..., 3:7])
    gripper = np.abs(mine[..., 7] - theirs[..., 7])
    return -(position + ORIENTATION_WEIGHT_M * angle + GRIPPER_WEIGHT_M * gripper).sum(-1).mean(-1)
