"""RoboTwin's scene as its own objects tell it: where things are, what a step did, and what of it is state.

Read by path in RoboTwin's own interpreter, as `server.py` says: numpy and the standard library only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from typing import Any

import numpy as np

ARMS = ("left", "right")
NOT_STATE = {"now_obs", "task_name", "save_dir"}
"""Attributes of a task that are plain values but not part of its state."""
FIXTURES = ("", "table", "wall", "ground")
"""Names of actors that are no objects of a task, as RoboTwin itself tells them apart."""


def where_things_are(env: Any) -> dict:
    """Where things are: `tools` [2, 3] m, `positions` of the objects [n, 3] m, and `joints` of those that have any."""
    objects = [actor for actor in env.scene.get_all_actors() if actor.get_name() not in FIXTURES]
    robots = (env.robot.left_entity, env.robot.right_entity)
    others = [found for found in env.scene.get_all_articulations() if found not in robots]
    joints = [np.ravel(found.get_qpos()) for found in others]
    return {
        "tools": np.array([env.get_arm_pose(arm)[:3] for arm in ARMS], dtype=np.float64),
        "positions": np.array([actor.get_pose().p for actor in objects], dtype=np.float64).reshape(-1, 3),
        "joints": np.concatenate([*joints, np.zeros(0)]).astype(np.float64),
    }


@contextlib.contextmanager
def pictures(env: Any, take: Any) -> Iterator[None]:
    """Calls `take` (if any) where RoboTwin takes the pictures of a demonstration: every `save_freq` physics steps."""
    if take is not None:
        env._take_picture = lambda *_, **__: take()
    try:
        yield
    finally:
        vars(env).pop("_take_picture", None)


@contextlib.contextmanager
def watched(env: Any) -> Iterator[dict]:
    """Counts physics steps (RoboTwin checks success after each) and notes plans that fail, which it passes over."""
    seen: dict[str, Any] = {"physics_steps": 0, "skipped": []}
    undo = []

    def wrap(owner: Any, name: str, after: Any) -> None:
        call = getattr(owner, name, None)
        if call is None:
            return

        def call_and_tell(*args: Any, **kwargs: Any) -> Any:
            try:
                result = call(*args, **kwargs)
            except Exception:
                after(None)
                raise
            after(result)
            return result

        own = getattr(owner, "__dict__", {}).get(name)
        with contextlib.suppress(AttributeError):  # an object of a compiled class takes no attributes
            setattr(owner, name, call_and_tell)
            undo.append((owner, name, own))

    def count(_: Any) -> None:
        seen["physics_steps"] += 1

    def note(arm: str) -> Any:
        def after(result: Any) -> None:
            failed = result is None or (isinstance(result, dict) and result.get("status") != "Success")
            failed = failed or (isinstance(result, tuple) and len(result) > 1 and len(result[1]) == 0)
            if failed and arm not in seen["skipped"]:
                seen["skipped"].append(arm)

        return after

    wrap(env, "check_success", count)
    for arm in ARMS:
        wrap(env.robot, f"{arm}_plan_path", note(arm))
        planner = getattr(env.robot, f"{arm}_mplib_planner", None)
        if planner is not None:
            wrap(planner, "TOPP", note(arm))
    try:
        yield seen
    finally:
        for owner, name, own in undo:
            delattr(owner, name) if own is None else setattr(owner, name, own)


def measured(robot: Any) -> dict:
    """Joint positions and gripper openings (1 open .. 0 closed) as they are, NaN where a robot does not tell."""
    result: dict[str, Any] = {}
    for arm in ARMS:
        real = getattr(robot, f"get_{arm}_arm_real_jointState", None)
        result[f"{arm}_arm"] = np.array(real()[:-1] if real else [], dtype=np.float64)
        opening = np.nan
        gripper, scale = getattr(robot, f"{arm}_gripper", None), getattr(robot, f"{arm}_gripper_scale", None)
        if gripper and scale and gripper[0] is not None:
            entity = getattr(robot, f"{arm}_entity")
            position = entity.get_qpos()[list(entity.get_active_joints()).index(gripper[0][0])]
            opening = (position - scale[0]) / (scale[1] - scale[0])
        result[f"{arm}_gripper"] = np.float64(opening)
    return result


def drives(entity: Any) -> dict:
    """Targets of the joints' drives and the forces on them, which are not part of SAPIEN's packed state."""
    joints = entity.get_active_joints()
    return {
        "target": np.array([np.ravel(joint.get_drive_target())[0] for joint in joints], dtype=np.float64),
        "velocity": np.array([np.ravel(joint.get_drive_velocity_target())[0] for joint in joints], dtype=np.float64),
        "qf": np.array(entity.get_qf(), dtype=np.float64),
    }


def set_drives(entity: Any, found: dict) -> None:
    """Put back what `drives` found."""
    for joint, target, velocity in zip(entity.get_active_joints(), found["target"], found["velocity"], strict=True):
        joint.set_drive_target(float(target))
        joint.set_drive_velocity_target(float(velocity))
    entity.set_qf(found["qf"])


def plain_attributes(holder: Any, dtypes: Container[str]) -> dict:
    """The attributes that are state and can be sent: plain values, and arrays of these dtypes."""
    return {name: value for name, value in vars(holder).items() if name not in NOT_STATE and _is_plain(value, dtypes)}


def _is_plain(value: Any, dtypes: Container[str]) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).dtype.newbyteorder("<").str in dtypes
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(_is_plain(one, dtypes) for one in value)
    if isinstance(value, dict):
        keys = all(isinstance(key, str) and not key.startswith("__") for key in value)
        return type(value) is dict and keys and all(_is_plain(one, dtypes) for one in value.values())
    return value is None or type(value) in (bool, int, float, str)
