"""Primitives of the scripted experts: each maps the measured state to the next tool command, without memory.

Commands are continuous in the state wherever the task allows it (funnels instead of waypoints, ramps instead of
switches), because policies are cloned from them. Lengths in metres, angles in radians, one call is one control step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs import se3
from envs.tabletop.world import Pose

MAX_STEP_M = 0.02
MAX_TURN_RAD = 0.12
DOWN = np.pi / 2


@dataclass(frozen=True)
class Command:
    """Where one tool should be after the next control step; gripper 1 open .. 0 closed."""

    position: np.ndarray
    rotation: np.ndarray
    gripper: float


def ramp(value: float, start: float, end: float) -> float:
    """0 at `start`, 1 at `end`, linear between and clipped; `start` may exceed `end`."""
    return float(min(1.0, max(0.0, (value - start) / (end - start))))


def tool_rotation(heading: float, pitch: float) -> np.ndarray:
    """Tool axes for a heading about the vertical and a downward pitch (0 horizontal, pi/2 straight down)."""
    ch, sh, cp, sp = np.cos(heading), np.sin(heading), np.cos(pitch), np.sin(pitch)
    forward = np.array([ch * cp, sh * cp, -sp])
    closing = np.array([-sh, ch, 0.0])
    return np.stack([forward, closing, np.cross(forward, closing)], axis=1)


def tool_heading(tool: Pose) -> float:
    """Heading of a tool, read off its closing axis, which is horizontal for every pitch."""
    return float(np.arctan2(-tool.rotation[0, 1], tool.rotation[1, 1]))


def nearest_face(yaw: float, preferred: float, period: float = np.pi / 2) -> float:
    """The angle closest to `preferred` among yaw + k * period."""
    return preferred + (yaw - preferred + period / 2) % period - period / 2


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """Angle of the rotation from matrix a to matrix b."""
    return float(np.arccos(min(1.0, max(-1.0, (np.sum(a * b) - 1.0) / 2.0))))


def carried_goal(tcp: Pose, body: Pose, centre: np.ndarray, heading: float) -> Pose:
    """Tool pose that puts a held body's centre at `centre`, upright, the tool turned to `heading`."""
    relative = Pose(body.position, body.rotation.T @ tcp.rotation)
    yaw = heading - tool_heading(relative)
    c, s = np.cos(yaw), np.sin(yaw)
    upright = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return Pose(centre + upright @ body.rotation.T @ (tcp.position - body.position), upright @ relative.rotation)


def move(tcp: Pose, position: np.ndarray, rotation: np.ndarray, gripper: float, speed: float = 1.0) -> Command:
    """A step of limited length and turn from the measured pose towards a goal."""
    offset = position - tcp.position
    length = float(np.linalg.norm(offset))
    angle = angle_between(tcp.rotation, rotation)
    fraction = min(1.0, speed * MAX_STEP_M / max(length, 1e-9))
    turn = min(1.0, MAX_TURN_RAD / max(angle, 1e-9))
    here, there = se3.matrix_to_quat(np.stack([tcp.rotation, rotation]))
    turned = se3.quat_to_matrix(se3.slerp(here, there, turn))
    return Command(tcp.position + fraction * offset, turned, gripper)


def funnel(
    tcp: Pose,
    goal: Pose,
    axis: np.ndarray,
    *,
    height: float,
    gripper: float,
    slope: float = 2.5,
    tolerance: float = 0.006,
    standoff: float = 0.0,
) -> Command:
    """Reach a goal along -axis from any side: keep a standoff along `axis` that shrinks with the sideways error.

    The sideways motion waits until the tool is outside the funnel, so a tool that is low beside an object backs out
    first. `standoff` adds a distance that other conditions ask for.
    """
    offset = tcp.position - goal.position
    along = float(offset @ axis)
    sideways = offset - along * axis
    error = float(np.linalg.norm(sideways)) + 0.05 * angle_between(tcp.rotation, goal.rotation)
    needed = min(height, slope * max(0.0, error - tolerance) + standoff)
    free = ramp(needed - along, 0.05, 0.01)
    target = goal.position + needed * axis + sideways * (1.0 - free)
    return move(tcp, target, goal.rotation, gripper)


def grasp(
    tcp: Pose,
    goal: Pose,
    axis: np.ndarray,
    *,
    height: float,
    standoff: float = 0.0,
    closing: tuple[float, float] = (0.012, 0.024),
) -> Command:
    """Approach through a funnel; the gripper closes between the two distances `closing`, shut at the smaller one."""
    distance = float(np.linalg.norm(tcp.position - goal.position)) + 0.05 * angle_between(tcp.rotation, goal.rotation)
    gripper = ramp(distance, *closing)
    return funnel(tcp, goal, axis, height=height, gripper=gripper, standoff=standoff)


def bounded(x: float, limit: float, side: float) -> float:
    """x, but not beyond `limit` in the direction `side` (+1 or -1)."""
    return side * min(side * x, side * limit)


def retreat(tcp: Pose, obstacle: np.ndarray, home: Pose, clearance: float = 0.1) -> Command:
    """Open, back out along the tool axis until clear of the obstacle, then go home."""
    back = -tcp.rotation[:, 0]
    clear = ramp(float(np.linalg.norm(tcp.position - obstacle)), 0.5 * clearance, clearance)
    homewards = home.position - tcp.position
    length = max(float(np.linalg.norm(homewards)), 1e-9)
    target = tcp.position + clear * homewards + (1.0 - clear) * back * max(length, MAX_STEP_M)
    rotation = home.rotation if clear > 0 else tcp.rotation
    return move(tcp, target, rotation, 1.0)
