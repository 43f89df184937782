"""The two arms: chain, sizes and limits, and as the files that RoboTwin reads (URDF, SRDF, its own config).

Each has six joints (yaw, pitch, pitch, pitch, yaw, roll) and a gripper of two sliding fingers, as RoboTwin's
aloha-agilex. In the zero pose all joint frames are aligned: x forward, y left, z up, and the last joint turns about x.
Lengths in m, angles in rad; colours RGBA.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

NAME = "boxarms"
SHOULDER_Y = {"left": 0.30, "right": -0.30}
"""Sideways place of each arm in the robot's frame."""
ROBOT_POSE = (0.0, -0.42, 0.74, 0.7071068, 0.0, 0.0, 0.7071068)
"""Of the robot's frame in the world, xyz and quaternion wxyz: at the table's edge, x over the table."""
SHOULDER_Z, UPPER, FORE, WRIST, HAND = 0.16, 0.38, 0.38, 0.04, 0.03
"""Height of joint 2 over the base, and lengths between the joints 2, 3, 4, 5 and 6."""
TOOL = 0.12
"""From joint 6 to the point between the fingers."""
LIMITS = ((-2.2, 2.2), (-1.3, 1.6), (-1.5, 1.4), (-2.4, 2.6), (-1.6, 1.6), (-3.14, 3.14))
"""Lower and upper limit of each joint."""
HOME = (0.0, -0.55, 0.95, 0.20, 0.0, 0.0)
OPEN = 0.045
"""Way of each finger from closed to open."""
CAMERA_TILT = math.radians(35)
"""By which the cameras on the hands look down."""

SKIN = {"left": "0.93 0.93 0.95 1", "right": "0.60 0.64 0.72 1"}
DARK = "0.12 0.12 0.14 1"
FINGERS = (("finger1", 1), ("finger2", -1))
"""Name and side (+1: left) of each finger."""
COLLIDING = ("link3", "hand", *(name for name, _ in FINGERS))
"""Parts of an arm that touch things; those of one arm not each other (SAPIEN's loader takes at most 31 such pairs)."""


def _box(size: Sequence[float], xyz: Sequence[float], colour: str, collides: bool = False) -> str:
    return _shape(f'<box size="{_numbers(size)}"/>', xyz, 0.0, colour, collides)


def _rod(radius: float, length: float, x: float, colour: str, collides: bool = False) -> str:
    """A cylinder along x, its centre at `x`."""
    return _shape(_cylinder(radius, length), (x, 0, 0), math.pi / 2, colour, collides)


def _post(radius: float, length: float, z: float, colour: str) -> str:
    """A cylinder along z, its centre at `z`."""
    return _shape(_cylinder(radius, length), (0, 0, z), 0.0, colour, collides=False)


def _cylinder(radius: float, length: float) -> str:
    return f'<cylinder radius="{radius}" length="{length}"/>'


def _shape(geometry: str, xyz: Sequence[float], pitch: float, colour: str, collides: bool) -> str:
    placed = f'<origin xyz="{_numbers(xyz)}" rpy="0 {pitch} 0"/><geometry>{geometry}</geometry>'
    visual = f'<visual>{placed}<material name=""><color rgba="{colour}"/></material></visual>'
    return visual + (f"<collision>{placed}</collision>" if collides else "")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(map(str, values))


def _link(name: str, shapes: str, mass: float = 1.0) -> str:
    """A link. RoboTwin sets all masses to 1 kg, what counts here is the inertia (kg m2)."""
    i = 0.004 * mass
    inertia = f'<inertia ixx="{i}" iyy="{i}" izz="{i}" ixy="0" ixz="0" iyz="0"/>'
    return f'<link name="{name}"><inertial><mass value="{mass}"/>{inertia}</inertial>{shapes}</link>'


def _joint(
    name: str, kind: str, parent: str, child: str, xyz: Sequence[float], axis: str = "1 0 0", pitch: float = 0.0
) -> str:
    """A joint without limits."""
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{_numbers(xyz)}" rpy="0 {pitch} 0"/><axis xyz="{axis}"/></joint>'
    )


def _limited(joint: str, lower: float, upper: float) -> str:
    limit = f'<limit lower="{lower}" upper="{upper}" effort="200" velocity="10"/>'
    return joint.replace("</joint>", f"{limit}</joint>")


def _links(arm: str) -> str:
    skin = SKIN[arm]
    links = {
        "base": _post(0.06, 0.12, 0.06, DARK),
        "link1": _post(0.05, 0.06, 0.0, skin),
        "link2": _post(0.036, UPPER, UPPER / 2, skin),
        "link3": _rod(0.03, FORE - 0.06, FORE / 2 - 0.03, skin, collides=True),
        "link4": _rod(0.026, WRIST, WRIST / 2, skin),
        "link5": _rod(0.024, HAND, HAND / 2, skin),
        "hand": _box((0.036, 0.12, 0.04), (0.046, 0, 0), skin, collides=True),
    }
    for finger, side in FINGERS:
        plate = _box((0.036, 0.010, 0.022), (0.080, side * 0.011, 0), skin)
        links[finger] = plate + _box((0.054, 0.012, 0.022), (0.107, side * 0.006, 0), DARK, collides=True)
    eye = _link(f"{arm}_camera", _box((0.01, 0.03, 0.02), (-0.02, 0, 0), DARK), mass=0.01)
    return "".join(_link(f"{arm}_{name}", shapes) for name, shapes in links.items()) + eye


CHAIN = (
    ("base", "link1", (0, 0, SHOULDER_Z - 0.04), "0 0 1"),
    ("link1", "link2", (0, 0, 0.04), "0 1 0"),
    ("link2", "link3", (0, 0, UPPER), "0 1 0"),
    ("link3", "link4", (FORE, 0, 0), "0 1 0"),
    ("link4", "link5", (WRIST, 0, 0), "0 0 1"),
    ("link5", "hand", (HAND, 0, 0), "1 0 0"),
)
"""Joints 1 to 6: the links that they join, place in the first link's frame, axis."""


def _joints(arm: str) -> str:
    joints = [_joint(f"{arm}_mount", "fixed", "root", f"{arm}_base", (0, SHOULDER_Y[arm], 0))]
    for i, (parent, child, xyz, axis) in enumerate(CHAIN):
        joint = _joint(f"{arm}_joint{i + 1}", "revolute", f"{arm}_{parent}", f"{arm}_{child}", xyz, axis)
        joints.append(_limited(joint, *LIMITS[i]))
    for finger, side in FINGERS:
        joint = _joint(f"{arm}_{finger}", "prismatic", f"{arm}_hand", f"{arm}_{finger}", (0, 0, 0), f"0 {side} 0")
        joints.append(_limited(joint, 0, OPEN))
    joints.append(_joint(f"{arm}_eye", "fixed", f"{arm}_hand", f"{arm}_camera", (0, 0, 0.09), pitch=CAMERA_TILT))
    return "".join(joints)


def urdf() -> str:
    """The robot: links, joints, shapes."""
    arms = "".join(_links(arm) + _joints(arm) for arm in SHOULDER_Y)
    return f'<?xml version="1.0"?><robot name="{NAME}">{_link("root", "")}{arms}</robot>'


def srdf() -> str:
    """Which links never touch: `COLLIDING` of the same arm."""
    pairs = "".join(
        f'<disable_collisions link1="{arm}_{a}" link2="{arm}_{b}" reason="Default"/>'
        for arm in SHOULDER_Y
        for a, b in itertools.combinations(COLLIDING, 2)
    )
    return f'<?xml version="1.0"?><robot name="{NAME}">{pairs}</robot>'


def config() -> dict[str, Any]:
    """What RoboTwin reads from an embodiment's config.yml. SAPIEN turns joint frames by 180 degrees about x, which
    `global_trans_matrix` undoes; with this `gripper_bias` its `endpose` is the frame of joint 6."""
    return {
        "urdf_path": "./robot.urdf",
        "srdf_path": "./robot.srdf",
        "joint_stiffness": 1000,
        "joint_damping": 200,
        "gripper_stiffness": 1000,
        "gripper_damping": 200,
        "move_group": [f"{arm}_hand" for arm in SHOULDER_Y],
        "ee_joints": [f"{arm}_joint6" for arm in SHOULDER_Y],
        "arm_joints_name": [[f"{arm}_joint{i}" for i in range(1, 7)] for arm in SHOULDER_Y],
        "gripper_name": [{"base": f"{arm}_finger1", "mimic": [[f"{arm}_finger2", 1.0, 0.0]]} for arm in SHOULDER_Y],
        "gripper_bias": TOOL,
        "gripper_scale": [0.0, OPEN],
        "homestate": [list(HOME) for _ in SHOULDER_Y],
        "delta_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "global_trans_matrix": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        "robot_pose": [list(ROBOT_POSE)],
        "planner": "mplib_RRT",
        "dual_arm": True,
        "rotate_lim": [0, 0],
        "grasp_perfect_direction": ["front_right", "front_left"],
        "static_camera_list": [
            {"name": "head_camera", "position": [-0.032, -0.45, 1.35], "forward": [0, 0.6, -0.8], "left": [-1, 0, 0]}
        ],
    }


def write(folder: str) -> None:
    """The files that RoboTwin opens by `config`, into a folder."""
    for name, text in (("robot.urdf", urdf()), ("robot.srdf", srdf())):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
