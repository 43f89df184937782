"""The last look at commands before anything moves: numbers that no arm can be sent to are refused, never clipped.

Within these bounds an environment keeps arms within their own reach; beyond them something is broken: statistics of
another unit, weights that diverged, a pose in millimetres.
"""

from __future__ import annotations

import numpy as np

from envs.types import ARMS

POSITION_LIMIT_M = 10.0
"""Largest coordinate of a position. Arms reach 1 to 2 m from frames that lie on their table or floor."""
GRIPPER_OVERSHOOT = 5.0
"""How far a gripper command may lie outside 0..1: what a policy samples leaves it a little, where environments clip it
(`envs.bimanual.executed`); numbers in mm, percent or bits leave it by far."""
QUATERNION_TOLERANCE = 0.01
"""Largest |norm - 1| of a policy's quaternions."""
PARTS = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")
_HIGH = np.tile([POSITION_LIMIT_M] * 3 + [np.inf] * 4 + [1 + GRIPPER_OVERSHOOT], len(ARMS))
_LOW = np.tile([-POSITION_LIMIT_M] * 3 + [-np.inf] * 4 + [-GRIPPER_OVERSHOOT], len(ARMS))


class CommandError(ValueError):
    """A command that must not be run. The message is one line: the number, where it stands, and its bound."""


def check_commands(commands: np.ndarray, *, unit: bool = False) -> None:
    """CommandError for `ee` commands [..., 16] that are not finite or beyond the bounds; with `unit` also for
    quaternions that are not of unit norm, which environments normalise."""
    good = (commands >= _LOW) & (commands <= _HIGH) & np.isfinite(commands)
    if not good.all():
        *rows, place = np.argwhere(~good)[0].tolist()
        bounded = np.isfinite(_HIGH[place])
        limit = f"{_LOW[place]:g} to {_HIGH[place]:g}" if bounded else "a finite number"
        name = f"{ARMS[place // len(PARTS)]} {PARTS[place % len(PARTS)]}"
        number = f" {rows[-1]}" if rows else ""
        value = commands[(*rows, place)]
        raise CommandError(f"command{number} is refused: its {name} (number {place}) is {value:.6g}, expected {limit}")
    if unit:
        quaternions = commands.reshape(*commands.shape[:-1], len(ARMS), len(PARTS))[..., 3:7]
        off = np.abs(np.linalg.norm(quaternions, axis=-1) - 1)
        if (off > QUATERNION_TOLERANCE).any():
            raise CommandError(f"a command is refused: a quaternion is {off.max():.3g} off unit norm")
