"""Keys to commands: each press is one control step in which one arm, or one number of a command, moves a little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from envs import se3
from envs.commands import POSITION_LIMIT_M
from envs.declared import DeclaredEnv
from envs.types import ARMS, ControlledEnv

STEP_M = 0.02
TURN_RAD = np.radians(6)
GRIPPER = 7
"""Place of the gripper among the 8 numbers of an arm."""
MOVES = {"d": (0, 1), "a": (0, -1), "w": (1, 1), "s": (1, -1), "r": (2, 1), "f": (2, -1)}
"""Key: axis of the world (x right, y away, z up) and direction."""
TURNS = {"i": (0, -1), "k": (0, 1), "l": (1, 1), "j": (1, -1), "u": (2, 1), "o": (2, -1)}
"""The same around an axis of the world."""
WAIT, GRIP, SWITCH = ".", " ", "Tab"
PAIRS = ("a d", "s w", "f r", "i k", "j l", "o u")
"""Of plain numbers: the keys that move one down and up."""
STEPS = 50
"""Presses from one edge of a number's range to the other."""


class Keyboard(Protocol):
    """What the keys command, from the last command on; each key adds to it, so that nothing drifts."""

    help: list[tuple[str, str]]
    """Keys, separated by spaces, and what they do."""
    note: str

    @property
    def moves(self) -> str:
        """What the keys move now, in words."""

    def hold(self, command: np.ndarray) -> None:
        """Go on from this command [A]."""

    def switch(self) -> None:
        """Move the other arm, or the next numbers, from now on."""

    def press(self, key: str) -> np.ndarray | None:
        """The command [A] of a key; None for a key that moves nothing."""


class KeyboardArms:
    """A `Keyboard` of one arm or two."""

    note = "Directions are the robot's own: its left is on the left of the pictures."

    def __init__(self, pose: np.ndarray) -> None:
        """`pose` is an `ee` pose [8 or 16], measured or commanded."""
        self.hold(pose)
        self._arm = 0
        switch = [("tab", "the other arm")] if len(self._command) > 1 else []
        self.help = [
            ("a d", "left, right"),
            ("w s", "away, nearer"),
            ("r f", "up, down"),
            ("u o i k j l", "turn around z, x, y"),
            ("space", "open or close the gripper"),
            *switch,
        ]

    @property
    def arm(self) -> str:
        """The one that keys move."""
        return ARMS[self._arm] if len(self._command) > 1 else "only"

    @property
    def moves(self) -> str:
        """See `Keyboard`."""
        return f"{self.arm} arm"

    def hold(self, command: np.ndarray) -> None:
        """See `Keyboard`."""
        self._command = command.reshape(-1, se3.ARM_EE_DIM).copy()

    def switch(self) -> None:
        """See `Keyboard`."""
        self._arm = (self._arm + 1) % len(self._command)

    def press(self, key: str) -> np.ndarray | None:
        """See `Keyboard`."""
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


class KeyboardNumbers:
    """A `Keyboard` of plain numbers: six pairs of keys move six of them, and `switch` goes on to the next six."""

    note = f"Numbers are those of the command, from 1 on; a key moves one by 1/{STEPS} of its range."

    def __init__(self, command: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """`low` and `high` [A] are the edges of the range of each."""
        self.hold(command)
        self._low, self._high, self._first = low, high, 0
        more = [("tab", "the next numbers")] if len(command) > len(PAIRS) else []
        self.help = [(keys, f"number {place + 1}, down, up") for place, keys in enumerate(PAIRS[: len(command)])] + more

    @property
    def moves(self) -> str:
        """See `Keyboard`."""
        last = min(self._first + len(PAIRS), len(self._command))
        return f"numbers {self._first + 1} to {last}"

    def hold(self, command: np.ndarray) -> None:
        """See `Keyboard`."""
        self._command = command.copy()

    def switch(self) -> None:
        """See `Keyboard`."""
        self._first += len(PAIRS)
        self._first *= self._first < len(self._command)

    def press(self, key: str) -> np.ndarray | None:
        """See `Keyboard`."""
        place = next((self._first + number for number, keys in enumerate(PAIRS) if key in keys.split()), None)
        if key != WAIT and (place is None or place >= len(self._command)):
            return None
        if place is not None:
            sign = 1 if PAIRS[place - self._first].endswith(key) else -1
            moved = self._command[place] + sign * (self._high[place] - self._low[place]) / STEPS
            self._command[place] = np.clip(moved, self._low[place], self._high[place])
        return self._command.copy()


def keyboard(env: ControlledEnv, before: Sequence[np.ndarray]) -> Keyboard:
    """For the present state of an environment, which the commands `before` have led to.

    It begins where the arms or joints are; of raw numbers, whose state holds no command, with the last one, or in the
    midst of their range.
    """
    layout = env.layout
    if layout.numbers == "ee":
        return KeyboardArms(env.state())
    assert isinstance(env, DeclaredEnv)
    low, high = env.command_range
    if layout.numbers == "joints":
        return KeyboardNumbers(env.state()[: layout.action_dim], low, high)
    return KeyboardNumbers(before[-1] if len(before) else (low + high) / 2, low, high)
