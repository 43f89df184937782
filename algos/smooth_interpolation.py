"""Smooth Interpolation of FlowPRO (arXiv:2606.14409, section 4.2): a failure and its correction -> preference tuples.

At a state M of the loser, the loser chunk is what was done next. The winner chunk goes on as the correction did from
its closest state M', and what M differs from M' by vanishes within a chunk: with d the difference at M, w_k the
winner's command k steps after M' and H commands in a chunk

    c_k = w_k + b(k / H) d,   b(s) = (1 - s)^3 + 3 (1 - s)^2 s,   k = 1, ..., H,

so positions join the winner by a cubic Bezier curve with the control points d, d, 0, 0, rotations by that share of the
rotation between both, and grippers by a line, sooner. Where M is M' the chunk is the recorded one, and it is as far
along as the winner. A bridge from M itself to a point of the winner falls behind, which cost success (studies.md).

Measured poses decide where the arms are, commands make the chunks: slot k of a chunk is the command that leads from
step k to k + 1. Ours, where the paper is silent: weights in metres and radians, one M' for both arms, a curve of one
chunk for the difference instead of the whole way, which begins at the last command (a gripper that holds something is
commanded further shut than it is measured). Where numbers are no poses (`envs.types.Layout`), c_k is taken as it stands
there, and distances are measured in standard deviations of the training data.

Letters: T steps of a segment, H chunk length, n states; A numbers of a command, S of a state.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from envs.curves import cubic
from envs.se3 import geodesic_angle, pose_distance, quat_conjugate, quat_multiply, slerp, split_arms
from envs.types import PreferencePair, Segment

GRIPPER_SHARE = 0.3
"""Part of a chunk after which grippers do what the winner's did."""
MIN_STEP_M, MIN_STEP_RAD = 1e-3, 1e-2
"""Shortest step within which a command counts, for pairs in which nothing moves."""
NO_TURN = np.array([1.0, 0.0, 0.0, 0.0])


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


def last_commands(side: Segment, steps: np.ndarray, limits: tuple[float, ...]) -> np.ndarray:
    """Commanded poses before the states `steps` of a segment, [n, 16], but within one step (m, rad) of the measured
    pose, since an arm that is held up can be far behind its command; grippers as commanded.
    """
    arms, target = split_arms(side.poses[steps]), split_arms(side.actions[np.maximum(steps - 1, 0)])
    offset = target[..., :3] - arms[..., :3]
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    position = arms[..., :3] + offset * (limits[0] / np.maximum(distance, limits[0]))
    angle = geodesic_angle(arms[..., 3:7], target[..., 3:7])
    quat = slerp(arms[..., 3:7], target[..., 3:7], limits[1] / np.maximum(angle, limits[1]))
    return np.concatenate([position, quat, target[..., 7:]], axis=-1).reshape(side.actions[steps].shape)


def left_of_difference(length: int) -> np.ndarray:
    """b(k / H) for k = 1, ..., H, [H]."""
    return cubic(np.array([1.0, 1.0, 0.0, 0.0]), np.arange(1, length + 1) / length)


def shifted_poses(recorded: np.ndarray, here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Commanded poses [n, H, 16] that begin beside the winner's `recorded` ones and join them: `here` are the commands
    [n, 16] before the states M, `there` those before M'."""
    length = recorded.shape[1]
    arms, start, origin = split_arms(recorded), split_arms(here)[:, None], split_arms(there)[:, None]
    left = left_of_difference(length)[:, None]
    position = arms[..., :3] + left[..., None] * (start - origin)[..., :3]
    turn = quat_multiply(start[..., 3:7], quat_conjugate(origin[..., 3:7]))
    quat = quat_multiply(slerp(NO_TURN, turn, left), arms[..., 3:7])
    shut = np.maximum(1 - np.arange(1, length + 1) / np.ceil(GRIPPER_SHARE * length), 0)[:, None, None]
    gripper = np.clip(arms[..., 7:] + shut * (start - origin)[..., 7:], 0, 1)
    return np.concatenate([position, quat, gripper], axis=-1).reshape(recorded.shape)


def _winner_chunks(pair: PreferencePair, loser_steps: np.ndarray, length: int, widths: np.ndarray | None) -> np.ndarray:
    """c_k of loser states, [n, H, A]; see above."""
    winner, loser = pair.winner, pair.loser
    measured, states = loser.poses[loser_steps][:, None], winner.poses[None, : len(winner.actions)]
    if pair.layout.numbers == "ee":
        nearest = np.argmin(pose_distance(measured, states), axis=1)
        recorded = recorded_chunks(winner.actions, nearest, length)
        limits = tuple(map(max, fastest_step(winner.poses), fastest_step(loser.poses)))
        here, there = last_commands(loser, loser_steps, limits), last_commands(winner, nearest, limits)
        return shifted_poses(recorded, here, there)
    assert widths is not None, "plain numbers are compared by their widths"
    nearest = np.argmin(np.linalg.norm((measured - states) / widths, axis=-1), axis=1)
    before = winner.actions[np.maximum(nearest - 1, 0)]
    difference = loser.actions[np.maximum(loser_steps - 1, 0)] - before
    left = left_of_difference(length)[:, None]
    return recorded_chunks(winner.actions, nearest, length) + left * difference[:, None]


def interpolate_pair(
    pair: PreferencePair, length: int, loser_states: int | None = None, widths: np.ndarray | None = None
) -> Tuples:
    """Tuples of a pair with chunks of `length` commands; relative encoding and normalisation come later.

    Loser states with fewer than `length` recorded commands ahead are dropped, and those after the first `loser_states`;
    winner chunks are padded with the last command. The shared start, the first loser state, lies on both segments: its
    winner chunk is the recorded one. Plain numbers need `widths`, standard deviations of states in the training data
    [S]. ValueError for an empty segment or a length below 1.
    """
    if length < 1 or not (len(pair.winner.actions) and len(pair.loser.actions)):
        steps = f"winner {len(pair.winner.actions)} and loser {len(pair.loser.actions)} steps"
        raise ValueError(f"cannot cut chunks of {length} from {steps}; all three must be at least 1")
    loser_steps = np.arange(max(0, len(pair.loser.actions) - length + 1))[:loser_states]
    winner_steps = np.arange(len(pair.winner.actions))
    recorded = recorded_chunks(pair.winner.actions, winner_steps, length)
    to_winner = _winner_chunks(pair, loser_steps, length, widths)
    to_winner[:1] = recorded[0]

    from_loser = np.arange(len(loser_steps) + len(winner_steps)) < len(loser_steps)
    return Tuples(
        from_loser=from_loser,
        step=np.concatenate([loser_steps, winner_steps]),
        start=np.concatenate([pair.loser.poses[loser_steps], pair.winner.poses[winner_steps]]),
        winner=np.concatenate([to_winner, recorded]),
        loser=np.concatenate([recorded_chunks(pair.loser.actions, loser_steps, length), recorded]),
        identical=~from_loser,
    )
