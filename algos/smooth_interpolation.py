"""Smooth Interpolation of FlowPRO (arXiv:2606.14409, section 4.2): a failure and its correction -> preference tuples.

At a state M of the loser, the loser chunk is what was done next. The winner chunk leads back to the correction: from M
to a transition point J a little after the closest winner state M', then along the winner. At winner states both chunks
are the recorded one (an identical pair).

Measured poses decide where the arms are, commands make the chunks: slot k of a chunk is the command that leads from
step k to k + 1. Ours, where the paper is silent: weights in metres and radians, one M' for both arms, J three tenths of
a chunk after M', tangents from the loser's last motion and the winner's commands at J, a bridge of commands that starts
at the last command (a gripper that holds something is commanded further shut than it is measured) and is never faster
than the fastest step of the pair.

Where numbers are no poses (`envs.types.Layout`), the bridge is a straight line in the space of commands, which is one
in the normalised space too; distances and speeds are measured there, in standard deviations of the training data.

Letters: T steps of a segment, H chunk length, n states; A numbers of a command, S of a state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from envs.curves import control_points, cubic, cubic_derivative
from envs.se3 import geodesic_angle, pose_distance, slerp, split_arms
from envs.types import PreferencePair, Segment

TANGENT_LENGTH = 1 / 3
"""Distance of the inner Bezier points from the ends, in units of the distance between the ends."""
LOOK_AHEAD = 0.3
"""J lies this part of a chunk after M'."""
MIN_STEP_M, MIN_STEP_RAD = 1e-3, 1e-2
"""Slowest speed limit of a bridge, for pairs in which nothing moves."""
MIN_STEP_WIDTHS = 1e-2
"""The same of plain numbers, in standard deviations."""

Mode = Literal["bezier", "none", "start"]


@dataclass(frozen=True)
class Widths:
    """Standard deviations of the training data, by which plain numbers are compared."""

    state: np.ndarray
    """[S]."""
    command: np.ndarray
    """[A]."""


@dataclass(frozen=True)
class Tuples:
    """Per-state tuples of one pair, loser states first. All commands are absolute."""

    from_loser: np.ndarray
    """State of the loser segment (else of the winner), bool [n]."""
    step: np.ndarray
    """Step of the state in its segment, which is also the index of its images, int64 [n]."""
    start: np.ndarray
    """Measured state, of poses what chunks are made relative to, [n, S]."""
    winner: np.ndarray
    """Commands to learn, [n, H, A]."""
    loser: np.ndarray
    """Commands recorded after the state (the winner's own on winner states), [n, H, A]."""
    identical: np.ndarray
    """winner and loser chunk are the same, bool [n]."""

    def __len__(self) -> int:
        return len(self.step)

    def select(self, rows: np.ndarray) -> Tuples:
        """Some of the tuples, by index or mask."""
        return Tuples(*(getattr(self, item.name)[rows] for item in fields(self)))


def recorded_chunks(actions: np.ndarray, steps: np.ndarray, length: int) -> np.ndarray:
    """The `length` commands from each step on, the last repeated beyond the end: [T, A], [n] -> [n, length, A]."""
    return actions[np.minimum(steps[:, None] + np.arange(length), len(actions) - 1)]


def fastest_step(poses: np.ndarray) -> tuple[float, float]:
    """Largest motion of an arm between two measured poses [T + 1, 16] (metres, radians), not below the minimum."""
    arms = split_arms(poses)
    moved = np.linalg.norm(np.diff(arms[..., :3], axis=0), axis=-1).max(initial=MIN_STEP_M)
    turned = geodesic_angle(arms[:-1, :, 3:7], arms[1:, :, 3:7]).max(initial=MIN_STEP_RAD)
    return float(moved), float(turned)


def bridge_origin(measured: np.ndarray, command: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Where a bridge of poses starts, [..., 16]: at the last command, but within one step (m, rad) of the measured
    pose, since an arm that is held up can be far behind its command; the gripper at its last command.
    """
    arms, target = split_arms(measured), split_arms(command)
    offset = target[..., :3] - arms[..., :3]
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    position = arms[..., :3] + offset * (limits[0] / np.maximum(distance, limits[0]))
    angle = geodesic_angle(arms[..., 3:7], target[..., 3:7])
    quat = slerp(arms[..., 3:7], target[..., 3:7], limits[1] / np.maximum(angle, limits[1]))
    return np.concatenate([position, quat, target[..., 7:]], axis=-1).reshape(measured.shape)


def bridge_chunks(
    measured: np.ndarray,
    command: np.ndarray,
    motion: np.ndarray,
    winner: Segment,
    length: int,
    limits: tuple[float, float],
) -> np.ndarray:
    """Commanded poses that lead from each state to the winner and along it, [n, H, 16]; of one arm all have 8 numbers.

    measured poses [n, 16]; command the last commands before them [n, 16]; motion the last displacement of the arms
    [n, 2, 3] in metres; limits the largest step of the bridge (m, rad). The bridge ends in the winner's command before
    J; every arm follows its own cubic Bezier, Slerp and line, all with the same number of steps: J - M', or more where
    that would be faster than the limits.
    """
    num_steps = len(winner.actions)
    nearest = np.argmin(pose_distance(measured[:, None], winner.poses[None, :num_steps]), axis=1)
    start = bridge_origin(measured, command, limits)
    goal = _goals(nearest, length, num_steps)
    around = [winner.actions[np.clip(goal + offset, 0, num_steps - 1)] for offset in (-1, 0, 1)]
    arms, (before, target, after) = split_arms(start), (split_arms(command) for command in around)
    control = control_points(arms[..., :3], motion, target[..., :3], (after - before)[..., :3], TANGENT_LENGTH)
    angle = geodesic_angle(arms[..., 3:7], target[..., 3:7])
    steps = np.maximum(goal + 1 - nearest, _bridge_steps(control, angle, limits))

    slot = np.arange(1, length + 1)
    fraction = np.minimum(slot / steps[:, None], 1.0)[..., None]
    s = fraction[..., None]
    position = cubic(control[:, :, None], s)
    quat = slerp(arms[:, None, :, 3:7], target[:, None, :, 3:7], fraction)
    gripper = (1 - s) * arms[:, None, :, 7:] + s * target[:, None, :, 7:]
    bridge = np.concatenate([position, quat, gripper], axis=-1).reshape(len(start), length, start.shape[-1])
    return _bridge_then_follow(bridge, winner, goal, steps)


def _goals(nearest: np.ndarray, length: int, num_steps: int) -> np.ndarray:
    """The winner's commands before J, in which bridges end, from its states M', [n]."""
    return np.minimum(nearest + math.ceil(LOOK_AHEAD * length), num_steps) - 1


def _bridge_then_follow(bridge: np.ndarray, winner: Segment, goal: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Chunks [n, H, A] that are a bridge for so many steps [n], and then the winner from its command `goal` [n] on."""
    slot = np.arange(1, bridge.shape[1] + 1)
    place = np.minimum(goal[:, None] + np.maximum(slot - steps[:, None], 0), len(winner.actions) - 1)
    return np.where((slot < steps[:, None])[..., None], bridge, winner.actions[place])


def line_chunks(
    measured: np.ndarray, command: np.ndarray, pair: PreferencePair, length: int, widths: Widths
) -> np.ndarray:
    """As `bridge_chunks` for plain numbers, [n, H, A]: a straight line from the last command [n, A] before each state
    [n, S] to the winner's command before J, in as many steps as from M' to J, or more where a number would change
    faster than any does in a step of the pair."""
    winner = pair.winner
    num_steps = len(winner.actions)
    apart = (measured[:, None] - winner.poses[None, :num_steps]) / widths.state
    nearest = np.argmin(np.linalg.norm(apart, axis=-1), axis=1)
    goal = _goals(nearest, length, num_steps)
    taken = [np.abs(np.diff(side.actions, axis=0) / widths.command).max(initial=0.0) for side in (winner, pair.loser)]
    way = winner.actions[goal] - command
    needed = np.abs(way / widths.command).max(axis=-1) / max(MIN_STEP_WIDTHS, *taken)
    steps = np.maximum(goal + 1 - nearest, np.ceil(needed - 1e-9).astype(np.int64))
    fraction = np.minimum(np.arange(1, length + 1) / steps[:, None], 1.0)[..., None]
    return _bridge_then_follow(command[:, None] + fraction * way[:, None], winner, goal, steps)


def _bridge_steps(control: np.ndarray, angle: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Steps with which no arm exceeds the limits (m, rad a step): control [4, n, 2, 3], angle [n, 2] -> int64 [n]."""
    needed = np.maximum(_peak_speed(control) / limits[0], angle / limits[1]).max(axis=-1)
    return np.ceil(needed - 1e-9).astype(np.int64)


def _peak_speed(control: np.ndarray) -> np.ndarray:
    """Largest |dB/ds| of cubic Bezier curves, of 17 points each: control [4, ..., 3] -> [...]."""
    s = np.linspace(0, 1, 17).reshape(-1, *[1] * (control.ndim - 1))
    return np.linalg.norm(cubic_derivative(control, s), axis=-1).max(axis=0)


def interpolate_pair(pair: PreferencePair, length: int, mode: Mode = "bezier", widths: Widths | None = None) -> Tuples:
    """Tuples of a pair with chunks of `length` commands; relative encoding and normalisation come later.

    Loser states with fewer than `length` recorded commands ahead are dropped; winner chunks are padded with the last
    command. The shared start lies on both segments: its winner chunk is the recorded one. With mode "none" it is the
    only loser state used, with "start" the only state at all, as for two chunks that were sampled in one state.
    Plain numbers need their `widths`. ValueError for an empty segment or a length below 1.
    """
    if length < 1 or not (len(pair.winner.actions) and len(pair.loser.actions)):
        steps = f"winner {len(pair.winner.actions)} and loser {len(pair.loser.actions)} steps"
        raise ValueError(f"cannot cut chunks of {length} from {steps}; all three must be at least 1")
    loser_steps = np.arange(max(0, len(pair.loser.actions) - length + 1))
    if mode != "bezier":
        loser_steps = loser_steps[:1]
    winner_steps = np.arange(len(pair.winner.actions))
    recorded = recorded_chunks(pair.winner.actions, winner_steps, length)

    measured, before = pair.loser.poses[loser_steps], np.maximum(loser_steps - 1, 0)
    command = pair.loser.actions[before]
    if pair.layout.numbers == "ee":
        positions = split_arms(pair.loser.poses)[..., :3]
        motion = positions[loser_steps] - positions[before]
        limits = tuple(np.maximum(fastest_step(pair.winner.poses), fastest_step(pair.loser.poses)))
        to_winner = bridge_chunks(measured, command, motion, pair.winner, length, limits)
    else:
        assert widths is not None, "plain numbers are compared by their widths"
        to_winner = line_chunks(measured, command, pair, length, widths)
    to_winner[:1] = recorded[0]

    num_loser, num_winner = len(loser_steps), len(winner_steps)
    tuples = Tuples(
        from_loser=np.arange(num_loser + num_winner) < num_loser,
        step=np.concatenate([loser_steps, winner_steps]),
        start=np.concatenate([measured, pair.winner.poses[winner_steps]]),
        winner=np.concatenate([to_winner, recorded]),
        loser=np.concatenate([recorded_chunks(pair.loser.actions, loser_steps, length), recorded]),
        identical=np.arange(num_loser + num_winner) >= num_loser,
    )
    return tuples.select(np.arange(num_loser)) if mode == "start" else tuples
