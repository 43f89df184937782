"""Simulator truth as tasks and experts read it: tool and object poses, grasps, table height; and inverse kinematics."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from envs.tabletop import scene
from envs.tabletop.scene import compile_arms
from envs.types import ARMS

LEFT, RIGHT = 0, 1

OPEN_ABOVE = 0.8
"""RoboTwin calls a gripper open when its commanded value is above this."""


@dataclass(frozen=True)
class Pose:
    """Position (m) and rotation matrix in the world frame."""

    position: np.ndarray
    rotation: np.ndarray

    @property
    def up(self) -> np.ndarray:
        """The body's z axis."""
        return self.rotation[:, 2]

    @property
    def upright(self) -> float:
        """Cosine of the tilt from vertical, 1 = upright."""
        return float(self.rotation[2, 2])

    @property
    def yaw(self) -> float:
        """Heading of the body's x axis about the vertical, rad."""
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))


def standing_cube(pose: Pose) -> Pose:
    """The same cube with its axes renamed so that z is the one nearest to up; a tumbled cube is as good as new."""
    vertical = int(np.argmax(np.abs(pose.rotation[2])))
    up = pose.rotation[:, vertical] * np.sign(pose.rotation[2, vertical])
    side = pose.rotation[:, (vertical + 1) % 3]
    return Pose(pose.position, np.stack([side, np.cross(up, side), up], axis=1))


class World:
    """View of one model and data; call `refresh` whenever the data changed."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.model, self.data = model, data
        self._sites = [model.site(f"{arm}_tcp").id for arm in ARMS]
        self._fingers = [{model.body(f"{arm}_finger{i}").id for i in (1, 2)} for arm in ARMS]
        self._bodies = {model.body(i).name: i for i in range(model.nbody)}
        self._touching: set[tuple[int, int]] | None = None

    def refresh(self) -> None:
        """Forget what was derived from the previous state."""
        self._touching = None

    @property
    def table_z(self) -> float:
        """Height of the table's surface, m."""
        return float(self.model.body_pos[self._bodies["table"], 2])

    def tcp(self, arm: int) -> Pose:
        """Measured tool pose of an arm (0 left, 1 right)."""
        site = self._sites[arm]
        return Pose(self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy())

    def gripper(self, arm: int) -> float:
        """Commanded gripper value, 1 open .. 0 closed."""
        return float(np.clip(self.data.ctrl[8 * arm + 6] / scene.FINGER_TRAVEL_M, 0.0, 1.0))

    def is_open(self, arm: int) -> bool:
        """RoboTwin's test of an open gripper."""
        return self.gripper(arm) > OPEN_ABOVE

    def body(self, name: str) -> Pose:
        """Pose of a named body."""
        body = self._bodies[name]
        return Pose(self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy())

    def place(self, name: str, position: np.ndarray, yaw: float) -> None:
        """Put a free or mocap body at a position (m), upright, turned by yaw (rad), at rest."""
        quat = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
        body = self.model.body(name)
        mocap = int(body.mocapid[0])
        if mocap >= 0:
            self.data.mocap_pos[mocap], self.data.mocap_quat[mocap] = position, quat
        else:
            start = int(self.model.jnt_qposadr[body.jntadr[0]])
            self.data.qpos[start : start + 7] = np.concatenate([position, quat])

    def fingers_touching(self, arm: int, name: str) -> int:
        """How many fingers (0..2) of an arm touch a body."""
        body = self._bodies[name]
        return sum((finger, body) in self._contact_pairs() for finger in self._fingers[arm])

    def held(self, arm: int, name: str) -> bool:
        """Both fingers of the arm touch the body."""
        return self.fingers_touching(arm, name) == 2

    def touched(self, name: str) -> bool:
        """Any finger touches the body."""
        return any(self.fingers_touching(arm, name) for arm in (LEFT, RIGHT))

    def off_table(self, name: str) -> bool:
        """The body has fallen below the table's surface."""
        return float(self.data.xpos[self._bodies[name]][2]) < self.table_z - 0.05

    def _contact_pairs(self) -> set[tuple[int, int]]:
        if self._touching is None:
            bodies = self.model.geom_bodyid[self.data.contact.geom].tolist()
            self._touching = {(a, b) for a, b in bodies} | {(b, a) for a, b in bodies}
        return self._touching


DAMPING = 0.02

ROTATION_WEIGHT_M = 0.2
"""Metres that one radian of error counts for, where both cannot be reached."""

MAX_ITERATIONS = 8

MAX_STEP_RAD = 0.4

LAST_ERROR = 5e-3
"""A step from an error (m, weighted rad) below this is the last one: it leaves about 1 % of it."""

ARM_DOFS = np.array([[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13]])


class BimanualIK:
    """Damped-least-squares inverse kinematics of both arms: dq = J^T (J J^T + lambda^2 I)^-1 e, iterated.

    It has its own kinematics-only copy of the arms and holds no state between calls.
    """

    def __init__(self) -> None:
        self._model = compile_arms()
        self._data = mujoco.MjData(self._model)
        self._sites = [self._model.site(f"{arm}_tcp").id for arm in ARMS]
        self._jacobian = np.zeros((2, 6, self._model.nv))
        self._error = np.zeros((2, 6))
        self._damping = DAMPING**2 * np.eye(6)
        self._low, self._high = scene.JOINT_RANGE.T

    def solve(self, start: np.ndarray, position_m: np.ndarray, quat_wxyz: np.ndarray) -> np.ndarray:
        """Joint angles [2, 6] (rad, within limits) for tool poses [2, 3] and [2, 4], searched from `start` [2, 6].

        A pose out of reach gives the nearest one found.
        """
        q = np.minimum(np.maximum(start, self._low), self._high)
        for _ in range(MAX_ITERATIONS):
            self._measure(q, position_m, quat_wxyz)
            error = np.abs(self._error).max()
            step = self._steps()
            largest = np.abs(step).max(axis=1, keepdims=True)
            step *= np.minimum(1.0, MAX_STEP_RAD / np.maximum(largest, 1e-9))
            q = np.minimum(np.maximum(q + step, self._low), self._high)
            if error < LAST_ERROR:
                break
        return q

    def _steps(self) -> np.ndarray:
        """The damped step of each arm, [2, 6]; J J^T + lambda^2 I is factored once, as it is positive definite."""
        steps = np.empty((2, 6))
        solution = np.empty(6)
        for i, dofs in enumerate(ARM_DOFS):
            jacobian = self._jacobian[i][:, dofs]
            normal = jacobian @ jacobian.T + self._damping
            mujoco.mju_cholFactor(normal, 0.0)
            mujoco.mju_cholSolve(solution, normal, self._error[i])
            steps[i] = solution @ jacobian
        return steps

    def forward(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tool positions [2, 3] (m) and rotation matrices [2, 3, 3] at joint angles [2, 6]."""
        self._data.qpos[ARM_DOFS] = q
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._sites].copy(), self._data.site_xmat[self._sites].reshape(2, 3, 3).copy()

    def _measure(self, q: np.ndarray, position_m: np.ndarray, quat_wxyz: np.ndarray) -> None:
        """Fill the pose error (m, weighted rad) and the Jacobian at q."""
        model, data = self._model, self._data
        data.qpos[ARM_DOFS] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        current, delta = np.empty(4), np.empty(4)
        for i, site in enumerate(self._sites):
            error, jacobian = self._error[i], self._jacobian[i]
            np.subtract(position_m[i], data.site_xpos[site], out=error[:3])
            mujoco.mju_mat2Quat(current, data.site_xmat[site])
            mujoco.mju_negQuat(current, current)
            mujoco.mju_mulQuat(delta, quat_wxyz[i], current)
            mujoco.mju_quat2Vel(error[3:], delta, 1.0)
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
        self._error[:, 3:] *= ROTATION_WEIGHT_M
        self._jacobian[:, 3:] *= ROTATION_WEIGHT_M
