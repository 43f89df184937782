"""Chunk stitching of Hy-Embodied-0.5-VLA (arXiv:2606.14409, sections 5.2-5.3): a late chunk joins the motion under way.

The policy decided on what it saw K control steps ago. The K commands whose time has passed are dropped; the last
command that was run, h_0, is joined to command f_c of the others, c = clip(floor(gamma M), 1, M - 2), by a cubic Bezier
with P_1 = P_0 + l d_hist, P_2 = P_3 - l d_fut, l = sigma |P_3 - P_0|, unit tangents along h_0 - h_-1 and
f_{c+1} - f_{c-1}; rotations by Slerp, grippers linearly, arms independently. Its c + 1 steps are even in the curve's
parameter, so that f_c keeps its time.

The paper drops K = ceil(N / alpha) points with an alpha for each robot; here K is known. gamma and sigma are not
published. Letters: N commands of a chunk, M = N - K of them left, A numbers of a command.
"""

from __future__ import annotations

import numpy as np

from envs.curves import control_points, cubic
from envs.se3 import slerp, split_arms

GAMMA = 0.3
SIGMA = 0.3


def fresh(chunk: np.ndarray, late: int) -> np.ndarray:
    """The chunk [N, A] without the commands whose time has passed, but at least its last three, [M, A]."""
    return chunk[max(0, min(late, len(chunk) - 3)) :]


def stitch(
    done: np.ndarray, chunk: np.ndarray, *, poses: bool, gamma: float = GAMMA, sigma: float = SIGMA
) -> np.ndarray:
    """Commands [M, A] that lead from the last two that were run, `done` [2, A], into a fresh chunk [M, A].

    `poses`: the numbers are `ee` poses of arms; plain numbers follow one curve together. Fewer than three fresh
    commands leave nothing to join to and are given back as they are.
    """
    if len(chunk) < 3:
        return chunk
    place = int(np.clip(np.floor(gamma * len(chunk)), 1, len(chunk) - 2))
    s = np.arange(1, place + 1)[:, None] / (place + 1)
    around = chunk[place - 1], chunk[place], chunk[place + 1]
    if not poses:
        return np.concatenate([_curve(done, around, s, sigma), chunk[place:]])
    arms = split_arms(done)
    goals = [split_arms(command) for command in around]
    joined = [
        np.concatenate(
            [
                _curve(arms[:, arm, :3], [goal[arm, :3] for goal in goals], s, sigma),
                slerp(arms[-1, arm, 3:7], goals[1][arm, 3:7], s[:, 0]),
                (1 - s) * arms[-1, arm, 7:] + s * goals[1][arm, 7:],
            ],
            axis=-1,
        )
        for arm in range(arms.shape[1])
    ]
    return np.concatenate([np.concatenate(joined, axis=-1), chunk[place:]])


def _curve(
    done: np.ndarray, around: list[np.ndarray] | tuple[np.ndarray, ...], s: np.ndarray, sigma: float
) -> np.ndarray:
    """Points [c, n] of the Bezier from `done` [2, n] to the middle one of three places [n]."""
    before, goal, after = around
    return cubic(control_points(done[-1], done[-1] - done[0], goal, after - before, sigma), s)
