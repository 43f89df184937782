"""What a set of episodes may have wrong though each can be read: units, grippers, the order of quaternions."""

from __future__ import annotations

import numpy as np

from envs.se3 import split_arms
from envs.types import ARMS, Episode, PreferencePair

REACH_M = 5.0
"""No tool of two arms at a table is farther from the origin; numbers in centimetres or millimetres are."""
OPEN = 0.5
NO_ROTATION = 0.95
"""A component of a unit quaternion that is larger leaves a rotation of less than 37 degrees, were it the scalar one."""


class Doubts:
    """Collects what speaks against a set, pose by pose."""

    def __init__(self) -> None:
        self.num_poses = 0
        self.farthest_m = 0.0
        self.widest = np.full(len(ARMS), -np.inf)
        self.last_is_scalar = np.zeros(len(ARMS), dtype=np.int64)

    def add(self, record: Episode | PreferencePair) -> None:
        """Look at the measured poses of an episode, or of both sides of a pair."""
        sides = [record] if isinstance(record, Episode) else [record.winner, record.loser]
        arms = split_arms(np.concatenate([side.poses for side in sides]))
        self.num_poses += len(arms)
        self.farthest_m = max(self.farthest_m, float(np.abs(arms[..., :3]).max()))
        self.widest = np.maximum(self.widest, arms[..., 7].max(axis=0))
        self.last_is_scalar += (np.abs(arms[..., 6]) > NO_ROTATION).sum(axis=0)

    def lines(self) -> list[str]:
        """One line for each doubt."""
        if not self.num_poses:
            return []
        found = []
        if self.farthest_m > REACH_M:
            found.append(f"positions reach {self.farthest_m:.4g}; expected metres, at most {REACH_M:g}")
        for arm, widest, count in zip(ARMS, self.widest, self.last_is_scalar, strict=True):
            if widest < OPEN:
                found.append(f"the {arm} gripper never opens (at most {widest:.3g}); expected 1 = open, 0 = closed")
            if count > self.num_poses / 2:
                share = f"{round(100 * count / self.num_poses)} % of the {arm} arm's quaternions"
                found.append(f"{share} turn nothing if their last number is the scalar: are they xyzw? Expected wxyz")
        return found
