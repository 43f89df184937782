"""Motions of an arm, without obstacles: what RoboTwin asks of its planners (`CuroboPlanner`, TOPP of `MplibPlanner`).

The expert's motions start and end at rest: along a straight line of the tool where they are short, in joint space
where they are long. A policy's command instead is so many equal physics steps, whatever it asks for (`equal_steps`):
RoboTwin's own lasts as long as its time-optimal motion.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .body import SHOULDER_Y
from .kinematics import axis_angle, forward, inverse, rotated, rotation

PHYSICS_HZ = 250
MAX_SPEED, MAX_ACCELERATION = 3.0, 16.0
"""Of the joints in the expert's motions, rad/s and rad/s2."""
GRIPPER_STEPS = 60
"""Physics steps in which the expert's grippers open or close; RoboTwin waits half as many more."""
STRAIGHT_M, STRAIGHT_RAD = 0.25, 2.5
"""Motions up to this length and turn follow a straight line of the tool."""
PART_M, PART_RAD = 0.01, 0.05
"""Between points of such a line."""
MAX_JUMP = 0.5
"""Of a joint between two of them, rad; more means that the line passes a singularity."""
PEAK_SPEED, PEAK_ACCELERATION = 1.875, 5.774
"""Of s(t) = t^3 (10 - 15 t + 6 t^2), which goes from 0 to 1 in unit time, at rest at both ends."""


class Planner:
    """Stands in for RoboTwin's CuroboPlanner: the motions of one arm. Poses are SAPIEN's (`p`, `q` wxyz), of joint 6 in
    the world."""

    command_steps: int | None = None
    """Physics steps of a policy's command while one is carried out; see `equal_steps`."""

    def __init__(self, robot_origion_pose: Any, active_joints_name: Sequence[str], all_joints: Sequence[str], **_: Any):
        self._index = [all_joints.index(name) for name in active_joints_name]
        self._R_world = rotation(robot_origion_pose.q)
        shoulder = np.array([0.0, SHOULDER_Y[active_joints_name[0].split("_")[0]], 0.0])
        self._p_world = np.asarray(robot_origion_pose.p, dtype=float) + self._R_world @ shoulder

    def plan_path(self, curr_joint_pos: Any, target_gripper_pose: Any, **_: Any) -> dict[str, Any]:
        """`position` and `velocity` [T, 6] at 250 Hz from the robot's joints to a pose, or `status` "Fail"."""
        start = np.asarray(curr_joint_pos, dtype=float)[self._index]
        p = self._R_world.T @ (np.asarray(target_gripper_pose.p, dtype=float) - self._p_world)
        end = inverse(p, self._R_world.T @ rotation(target_gripper_pose.q), near=start)
        if end is None:
            return {"status": "Fail"}
        position, velocity = _timed(start, end, straight=True)
        return {"status": "Success", "position": position, "velocity": velocity}

    def plan_batch(self, curr_joint_pos: Any, target_gripper_pose_list: Sequence[Any], **_: Any) -> dict[str, Any]:
        """`plan_path` to each of many poses, of which RoboTwin often gives the same one ten times."""
        plans: dict[tuple, dict] = {}
        keys = [(*pose.p, *pose.q) for pose in target_gripper_pose_list]
        for key, pose in zip(keys, target_gripper_pose_list, strict=True):
            if key not in plans:
                plans[key] = self.plan_path(curr_joint_pos, pose)
        found = [plans[key] for key in keys]
        status = ["Success" if plan["status"] == "Success" else "Failure" for plan in found]
        return {
            "status": np.array(status, dtype=object),
            "position": [plan.get("position") for plan in found],
            "velocity": [plan.get("velocity") for plan in found],
        }

    def plan_grippers(self, now_val: float, target_val: float) -> dict[str, Any]:
        """Openings (0 closed, 1 open) on the way."""
        n = GRIPPER_STEPS
        return {"num_step": n, "per_step": (target_val - now_val) / n, "result": np.linspace(now_val, target_val, n)}


class Timing:
    """Stands in for RoboTwin's MplibPlanner, of which `take_action(..., "qpos")` uses TOPP alone."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def TOPP(self, path: Any, step: float, verbose: bool = False) -> tuple:  # noqa: N802  (mplib's name)
        """Times, positions, velocities, accelerations (not used: None) and seconds from path[0] to path[-1]."""
        ends = np.asarray(path, dtype=float)
        position, velocity = _timed(ends[0], ends[-1], straight=False)
        return np.arange(1, len(position) + 1) * step, position, velocity, None, len(position) * step


@contextlib.contextmanager
def equal_steps(count: int | None) -> Iterator[None]:
    """Motions take this many equal physics steps meanwhile; None: as the expert's."""
    before, Planner.command_steps = Planner.command_steps, count
    try:
        yield
    finally:
        Planner.command_steps = before


def _timed(start: np.ndarray, end: np.ndarray, straight: bool) -> tuple[np.ndarray, np.ndarray]:
    if Planner.command_steps is not None:
        return steady(start, end, Planner.command_steps)
    line = straight_line(start, end) if straight else None
    return from_rest_to_rest(np.stack([start, end]) if line is None else line)


def steady(start: np.ndarray, end: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities [count, 6] of equal steps from `start` (not included) to `end`."""
    position = start + (end - start) * (np.arange(1, count + 1) / count)[:, None]
    return position, np.broadcast_to((end - start) * PHYSICS_HZ / count, position.shape)


def from_rest_to_rest(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities [T, 6] at 250 Hz along a path [n, 6] of equal parts, within the limits of speed and
    acceleration where it is straight."""
    slope = np.abs(np.diff(path, axis=0)).max() * (len(path) - 1)
    seconds = max(PEAK_SPEED * slope / MAX_SPEED, math.sqrt(PEAK_ACCELERATION * slope / MAX_ACCELERATION))
    count = max(2, math.ceil(seconds * PHYSICS_HZ))
    t = np.arange(1, count + 1) / count
    s, rate = t**3 * (10 - 15 * t + 6 * t * t), 30 * t * t * (1 - t) ** 2 * PHYSICS_HZ / count
    grid = np.linspace(0, 1, len(path))
    slopes = np.gradient(path, grid, axis=0)
    position, velocity = (np.stack([np.interp(s, grid, row) for row in rows.T], axis=1) for rows in (path, slopes))
    return position, velocity * rate[:, None]


def straight_line(start: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """Joints [n, 6] along the straight line of the tool, turning evenly; None where it is too long or has no way."""
    (p0, R0), (p1, R1) = forward(start), forward(end)
    length, (axis, angle) = float(np.linalg.norm(p1 - p0)), axis_angle(R0.T @ R1)
    if length > STRAIGHT_M or angle > STRAIGHT_RAD:
        return None
    path = [start]
    for share in np.linspace(0, 1, max(2, math.ceil(max(length / PART_M, angle / PART_RAD))) + 1)[1:-1]:
        q = inverse(p0 + (p1 - p0) * share, rotated(R0, axis, angle * share), near=path[-1])
        if q is None:
            return None
        path.append(q)
    line = np.stack([*path, end])
    return line if np.abs(np.diff(line, axis=0)).max() <= MAX_JUMP else None
