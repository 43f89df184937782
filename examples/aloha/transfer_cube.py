"""gym-aloha's TransferCube: the right arm lifts a cube, the left one takes it from there. 14 joint numbers, one camera.

The package ends an episode with success as soon as the left finger touches the cube off the table. The expert goes by
way-points that are ours, with the arms' own geometry: a plane of shoulder, elbow and wrist that the waist turns.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from gym_aloha.env import AlohaEnv
from gymnasium import spaces

from envs.declared import Declaration

REPEAT = 5
"""The package's steps of 20 ms in one of ours: 10 Hz."""
BASE_X, SHOULDER_Z, HAND = 0.469, 0.12705, 0.20
"""Metres: of the bases from the middle, of the shoulders above the table, from the wrist to between the fingers."""
UPPER, UPPER_ANGLE, FOREARM = float(np.hypot(0.05955, 0.3)), float(np.arctan2(0.3, 0.05955)), 0.3
MEETING = np.array([0.0, 0.5, 0.25])
ABOVE = np.array([0.0, 0.0, 0.025])
"""Where a hand that looks down takes the cube, above its centre: its tips are not to drag on the table."""
NEAR, GRIPPED = 0.02, 0.68
"""Metres from there; opening of a gripper around it (0.61), and a little more."""
ARMS = {"left": (slice(0, 6), 6, 1.0), "right": (slice(7, 13), 13, -1.0)}
"""Places of joints and gripper among the 14 numbers, and which way the arm looks."""
FASTEST = 0.15
"""Radians that the expert moves a joint in one step."""


class TransferCube(AlohaEnv):
    def __init__(self) -> None:
        super().__init__("transfer_cube", obs_type="pixels_agent_pos")
        task, quality = self._env.task, self.physics.model.vis.quality
        quality.shadowsize = quality.offsamples = 0
        nothing = np.zeros((1, 1, 3), np.uint8)  # the package draws three pictures of 640 x 480 in each step
        task.get_observation = lambda physics: {"qpos": task.get_qpos(physics), "images": {"top": nothing}}
        low, high = self.physics.model.actuator_ctrlrange.T.reshape(2, 2, 8)[..., :7].reshape(2, 14).copy()
        low[[6, 13]], high[[6, 13]] = 0.0, 1.0
        self.action_space = spaces.Box(low, high, dtype=np.float64)  # the package says -1..1, which elbows exceed

    @property
    def physics(self) -> Any:
        return self._env.physics

    def step(self, action: np.ndarray) -> tuple:
        start = self._env.task.get_qpos(self.physics)
        for part in range(1, REPEAT + 1):
            result = super().step(start + (action - start) * part / REPEAT)
            if result[2]:
                break
        return result

    def close(self) -> None:
        self.physics.free()  # or what draws complains at the end of the process

    def cube(self) -> np.ndarray:
        return self.physics.named.data.xpos["box"].copy()

    def tips(self, side: str) -> np.ndarray:
        """Between the finger tips."""
        named, name = self.physics.named.data, f"vx300s_{side}/gripper_link"
        return named.xpos[name] + named.xmat[name].reshape(3, 3)[:, 0] * (HAND - 0.069744)


def joints(side: str, tips: np.ndarray, pitch: float, roll: float) -> np.ndarray:
    """Of an arm whose tips are somewhere, the hand turned down by `pitch`, and around itself by `roll`."""
    sign = ARMS[side][2]
    x, y = sign * tips[0] + BASE_X, sign * (tips[1] - 0.5)
    out, up = np.hypot(x, y) - HAND * np.cos(pitch), tips[2] + HAND * np.sin(pitch) - SHOULDER_Z
    bend = np.arccos(np.clip((out**2 + up**2 - UPPER**2 - FOREARM**2) / (2 * UPPER * FOREARM), -1.0, 1.0))
    raised = np.arctan2(up, out) + np.arctan2(FOREARM * np.sin(bend), UPPER + FOREARM * np.cos(bend))
    shoulder, elbow = UPPER_ANGLE - raised, bend - UPPER_ANGLE
    return np.array([np.arctan2(y, x), shoulder, elbow, 0.0, pitch - shoulder - elbow, roll])


def expert(env: Any, observation: Any) -> np.ndarray:
    """A function of the present state alone."""
    env, now = env.unwrapped, observation["agent_pos"]
    cube, right, left = env.cube(), env.tips("right"), env.tips("left")
    grip = cube + ABOVE
    is_near = np.linalg.norm(right - grip) < NEAR
    is_held = is_near and now[13] < GRIPPED
    is_above = np.linalg.norm((right - cube)[:2]) < NEAR and now[13] > 0.8
    goal = MEETING + ABOVE if is_held else grip if is_above or is_near else grip + 3 * ABOVE
    is_met = is_held and np.linalg.norm(cube - MEETING) < 0.04
    wanted = now.copy()
    wanted[7:13], wanted[13] = joints("right", goal, np.radians(60), 0.0), 0.0 if is_near else 1.0
    waiting = MEETING - [0.08, 0.0, 0.0]
    wanted[:6] = joints("left", cube if is_met else waiting, 0.0, np.radians(90))
    wanted[6] = 0.0 if is_met and np.linalg.norm(left - cube) < NEAR else 1.0
    for part, _, _ in ARMS.values():
        wanted[part] = now[part] + np.clip(wanted[part] - now[part], -FASTEST, FASTEST)
    return wanted


def progress(env: Any) -> float:
    """A third each: the right hand comes to the cube, the cube up, the left hand to the cube."""
    env = env.unwrapped
    cube = env.cube()
    near = [1.0 - min(1.0, 2.0 * float(np.linalg.norm(env.tips(side) - cube))) for side in ARMS]
    return (sum(near) + float(np.clip(cube[2] / MEETING[2], 0.0, 1.0))) / 3


def save(env: Any) -> bytes:
    model, data = env.unwrapped.physics.model.ptr, env.unwrapped.physics.data.ptr
    state = np.zeros(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return state.tobytes()


def load(env: Any, snapshot: bytes) -> Any:
    env = env.unwrapped
    model, data = env.physics.model.ptr, env.physics.data.ptr
    mujoco.mj_setState(model, data, np.frombuffer(snapshot).copy(), mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_step1(model, data)  # where dm_control's steps end
    return env._format_raw_obs(env._env.task.get_observation(env.physics))


def make(task: str, variant: str) -> Declaration:
    return Declaration(
        env=TransferCube(),
        control_hz=10.0,
        numbers="joints",
        cameras={"top": lambda env: env.unwrapped.physics.render(96, 128, camera_id="top")},
        state="agent_pos",
        success="is_success",
        instructions=("Pass the red cube from the right hand to the left.",),
        step_limit=80,
        save=save,
        load=load,
        expert=expert,
        progress=progress,
        failure=lambda env: "off_table" if env.unwrapped.cube()[2] < -0.05 else None,
    )
