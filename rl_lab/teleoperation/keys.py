"""Keys to commands: each press is one control step in which one arm moves a little along, or around, one axis."""

from __future__ import annotations

import numpy as np

from envs import se3
from envs.bimanual import POSITION_LIMIT_M
from envs.types import ARMS

STEP_M = 0.02
TURN_RAD = np.radians(6)
GRIPPER = 7
"""Place of the gripper among the 8 numbers of an arm."""
MOVES = {"d": (0, 1), "a": (0, -1), "w": (1, 1), "s": (1, -1), "r": (2, 1), "f": (2, -1)}
"""Key: axis of the world (x right, y away, z up) and direction."""
TURNS = {"i": (0, -1), "k": (0, 1), "l": (1, 1), "j": (1, -1), "u": (2, 1), "o": (2, -1)}
"""The same around an axis of the world."""
WAIT, GRIP, SWITCH = ".", " ", "Tab"


class KeyboardArms:
    """What the keys command, from where the arms are; each key adds to the last command, so that nothing drifts."""

    def __init__(self, pose: np.ndarray, arm: str = ARMS[0]) -> None:
        """`pose` is an `ee` pose [16], measured or commanded; `arm` the one that keys move."""
        self._command = pose.reshape(len(ARMS), se3.ARM_EE_DIM).copy()
        self._arm = ARMS.index(arm)

    @property
    def arm(self) -> str:
        """The one that keys move."""
        return ARMS[self._arm]

    def switch(self) -> None:
        """Move the other arm from now on."""
        self._arm = 1 - self._arm

    def press(self, key: str) -> np.ndarray | None:
        """The command [16] of a key; None for a key that moves nothing."""
        arm = self._command[self._arm]
        if key in MOVES:
            axis, sign = MOVES[key]
            arm[axis] = np.clip(arm[axis] + sign * STEP_M, -POSITION_LIMIT_M, POSITION_LIMIT_M)
        elif key in TURNS:
            axis, sign = TURNS[key]
            turn = np.zeros(4)
            turn[[0, 1 + axis]] = np.cos(TURN_RAD / 2), sign * np.sin(TURN_RAD / 2)
            arm[3:GRIPPER] = se3.normalize(se3.quat_multiply(turn, arm[3:GRIPPER]))
        elif key == GRIP:
            arm[GRIPPER] = float(arm[GRIPPER] < 0.5)
        elif key != WAIT:
            return None
        return self._command.reshape(-1).copy()
