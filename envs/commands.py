"""What may be commanded: numbers that no arm can be sent to are refused, never clipped, before anything moves.

Within the bounds an environment keeps arms within their own reach; beyond them something is broken: statistics of
another unit, weights that diverged, a pose in millimetres.
"""

from __future__ import annotations

import numpy as np

from envs.se3 import normalize, split_arms
from envs.types import ARMS, BIMANUAL, Layout

POSITION_LIMIT_M = 10.0
"""Largest coordinate of a position. Arms reach 1 to 2 m from frames that lie on their table or floor."""

GRIPPER_OVERSHOOT = 5.0
"""How far a gripper command may lie outside 0..1: what a policy samples leaves it a little, where environments clip it
(`executed`); numbers in mm, percent or bits leave it by far."""

QUATERNION_TOLERANCE = 0.01
"""Largest |norm - 1| of a policy's quaternions."""

PARTS = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")

ENCODED_PARTS = ("x", "y", "z", *(f"rotation {row}{column}" for row in (1, 2) for column in (1, 2, 3)), "gripper")

_HIGH = np.array([POSITION_LIMIT_M] * 3 + [np.inf] * 4 + [1 + GRIPPER_OVERSHOOT])

_LOW = np.array([-POSITION_LIMIT_M] * 3 + [-np.inf] * 4 + [-GRIPPER_OVERSHOOT])


class CommandError(ValueError):
    """A command that must not be run. The message is one line: the number, where it stands, and its bound."""


def check_commands(commands: np.ndarray, *, unit: bool = False, layout: Layout = BIMANUAL) -> None:
    """CommandError for commands [..., A] that are not finite or, as poses, beyond the bounds; with `unit` also for
    quaternions that are not of unit norm, which environments normalise."""
    is_ee = layout.numbers == "ee"
    arms = layout.action_dim // len(PARTS)
    low, high = (np.tile(ends, arms) if is_ee else np.full(layout.action_dim, ends[3]) for ends in (_LOW, _HIGH))
    good = (commands >= low) & (commands <= high) & np.isfinite(commands)
    if not good.all():
        *rows, place = np.argwhere(~good)[0].tolist()
        bounded = np.isfinite(high[place])
        limit = f"{low[place]:g} to {high[place]:g}" if bounded else "a finite number"
        name = part_name(layout, place)
        number = f" {rows[-1]}" if rows else ""
        value = commands[(*rows, place)]
        raise CommandError(f"command{number} is refused: its {name} (number {place}) is {value:.6g}, expected {limit}")
    if unit and is_ee:
        quaternions = split_arms(commands)[..., 3:7]
        off = np.abs(np.linalg.norm(quaternions, axis=-1) - 1)
        if (off > QUATERNION_TOLERANCE).any():
            raise CommandError(f"a command is refused: a quaternion is {off.max():.3g} off unit norm")


def part_name(layout: Layout, place: int) -> str:
    """A number of a command in words."""
    if layout.numbers != "ee":
        return f"{'joint' if layout.numbers == 'joints' else 'part'} {place}"
    arm = f"{ARMS[place // len(PARTS)]} " if layout.action_dim > len(PARTS) else ""
    return f"{arm}{PARTS[place % len(PARTS)]}"


def encoded_name(layout: Layout, place: int) -> str:
    """A number of an encoded command in words."""
    if layout.numbers != "ee":
        return part_name(layout, place)
    arm = f"{ARMS[place // len(ENCODED_PARTS)]} " if layout.action_dim > len(PARTS) else ""
    return f"{arm}{ENCODED_PARTS[place % len(ENCODED_PARTS)]}"


def executed(commands: np.ndarray) -> np.ndarray:
    """`ee` commands [..., 8 or 16] as every environment runs them: unit quaternions, and grippers within 0..1.

    A policy's samples are learned from as they are; this is what became of them. Positions stay as commanded, though
    an environment may keep the arms within their reach.
    """
    arms = split_arms(np.array(commands, dtype=np.float64))
    arms[..., 3:7] = normalize(arms[..., 3:7])
    arms[..., 7] = np.clip(arms[..., 7], 0.0, 1.0)
    return arms.reshape(np.shape(commands))
