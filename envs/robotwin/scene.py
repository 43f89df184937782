"""RoboTwin's scene as its own objects tell it: where things are, and what a step did.

Read by path in RoboTwin's own interpreter, as `server.py` says: numpy and the standard library only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

ARMS = ("left", "right")
HELD = 1e-3
"""An arm whose goal is no farther than this (m, parts of a quaternion, rad) is to hold still."""
PHYSICS_HZ = 250
PICTURE_STEPS = 15
"""Physics steps between two pictures of RoboTwin's demonstrations where its task config does not say."""
UNLIMITED = 10**9
"""Steps of an episode that RoboTwin runs, so that nobody is stopped but by the lab."""
FIXTURES = ("", "table", "wall", "ground")
"""Names of actors that are no objects of a task, as RoboTwin itself tells them apart."""


def where_things_are(env: Any) -> dict:
    """Where things are: `tools` [2, 3] m, `positions` of the objects [n, 3] m, `joints` of those that have any.

    `truth` is what a probe of pictures is to tell: place and `heading` of the task's objects, then joints. Clutter is
    left out, since its number differs between seeds.
    """
    objects = [actor for actor in env.scene.get_all_actors() if actor.get_name() not in FIXTURES]
    robots = (env.robot.left_entity, env.robot.right_entity)
    others = [found for found in env.scene.get_all_articulations() if found not in robots]
    joints = [np.ravel(found.get_qpos()) for found in others]
    clutter = {each["object_type"] for each in getattr(env, "record_cluttered_objects", ())}
    poses = [actor.get_pose() for actor in objects if actor.get_name() not in clutter]
    truth = [part for pose in poses for part in (pose.p, heading(pose.q))]
    return {
        "tools": np.array([env.get_arm_pose(arm)[:3] for arm in ARMS], dtype=np.float64),
        "positions": np.array([actor.get_pose().p for actor in objects], dtype=np.float64).reshape(-1, 3),
        "joints": np.concatenate([*joints, np.zeros(0)]).astype(np.float64),
        "truth": np.concatenate([*truth, *joints, np.zeros(0)]).astype(np.float64),
    }


def heading(quat_wxyz: Any) -> np.ndarray:
    """How an object stands, without the ambiguities of a square block, [3].

    Cosine and sine of four times its yaw, and 1 where one of its axes is vertical, less where it leans. Of the axes
    a_j: 1/2 sum_j (a_jx + i a_jy)^4 and sum_j a_jz^4, which are smooth in every attitude.
    """
    w, x, y, z = np.asarray(quat_wxyz, dtype=np.float64)
    along_x = np.array([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)])
    along_y = np.array([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)])
    along_z = np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])
    fourfold = ((along_x + 1j * along_y) ** 4).sum() / 2
    return np.array([fourfold.real, fourfold.imag, (along_z**4).sum()])


@contextlib.contextmanager
def ticking(env: Any, take: Any, every: int) -> Iterator[None]:
    """Calls `take` (if any) after every so many physics steps, and after the last one.

    RoboTwin's own pictures are not even: it takes one before, within and after each motion, so a quarter repeat.
    """
    step, steps, save_freq = env.scene.step, 0, getattr(env, "save_freq", None)

    def step_and_take() -> None:
        nonlocal steps
        step()
        steps += 1
        if steps % every == 0:
            take()

    if take is not None:
        env.scene.step, env.save_freq = step_and_take, None
    try:
        yield
        if take is not None and steps % every:
            take()
    finally:
        if take is not None:
            del env.scene.step
            env.save_freq = save_freq


@contextlib.contextmanager
def watched(env: Any) -> Iterator[dict]:
    """Counts physics steps (RoboTwin checks success after each) and notes plans that fail, which it passes over.

    An arm that is told to stay where it is has no plan to make, whatever its planner says of a path of no length.
    """
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
                after(None, *args)
                raise
            after(result, *args)
            return result

        own = getattr(owner, "__dict__", {}).get(name)
        with contextlib.suppress(AttributeError):  # an object of a compiled class takes no attributes
            setattr(owner, name, call_and_tell)
            undo.append((owner, name, own))

    def count(*_: Any) -> None:
        seen["physics_steps"] += 1

    def skip(arm: str, start: Any, goal: Any) -> None:
        moves = np.abs(np.asarray(goal, dtype=np.float64) - start).max() > HELD
        if moves and arm not in seen["skipped"]:
            seen["skipped"].append(arm)

    def planned(arm: str) -> Any:
        def after(result: Any, pose: Any, *_: Any) -> None:
            if result is None or result.get("status") != "Success":
                skip(arm, env.get_arm_pose(arm), pose)

        return after

    def timed(arm: str) -> Any:
        def after(result: Any, path: Any, *_: Any) -> None:
            if result is None or len(result[1]) == 0:
                skip(arm, path[0], path[-1])

        return after

    wrap(env, "check_success", count)
    for arm in ARMS:
        wrap(env.robot, f"{arm}_plan_path", planned(arm))
        planner = getattr(env.robot, f"{arm}_mplib_planner", None)
        if planner is not None:
            wrap(planner, "TOPP", timed(arm))
    try:
        yield seen
    finally:
        for owner, name, own in undo:
            delattr(owner, name) if own is None else setattr(owner, name, own)


def commanded(env: Any) -> dict[str, dict]:
    """`joint_action` and `endpose` of RoboTwin's observation, which cost no picture."""
    joints = {arm: list(getattr(env.robot, f"get_{arm}_arm_jointState")()) for arm in ARMS}
    joint_action: dict[str, Any] = {}
    endpose: dict[str, Any] = {}
    for arm in ARMS:
        gripper = np.float64(getattr(env.robot, f"get_{arm}_gripper_val")())
        joint_action[f"{arm}_arm"] = np.array(joints[arm][:-1], dtype=np.float64)
        joint_action[f"{arm}_gripper"] = endpose[f"{arm}_gripper"] = gripper
        endpose[f"{arm}_endpose"] = np.array(env.get_arm_pose(arm), dtype=np.float64)
    joint_action["vector"] = np.array(joints["left"] + joints["right"], dtype=np.float64)
    return {"joint_action": joint_action, "endpose": endpose}


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
