"""`TabletopEnv`: a gymnasium environment with RoboTwin's observations and actions, snapshots and a scripted expert.

A snapshot is everything that decides how an episode continues, as bytes that any process of the same build can load:
one line of JSON (identity of the scene, counters, random stream), then mjSTATE_INTEGRATION as float64.
"""

from __future__ import annotations

import envs.tabletop.gl  # noqa: F401  isort: skip  (chooses MUJOCO_GL before mujoco is imported)
import copy
import json
import string
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces

from envs import se3
from envs.bimanual import Bimanual, check_choice
from envs.tabletop import MODES, VARIANTS, scene
from envs.tabletop.expert import Command
from envs.tabletop.rendering import MAX_WIDTH, scene_renderer
from envs.tabletop.scene import CONTROL_HZ, SUBSTEPS, compile_scene, randomize
from envs.tabletop.tasks import TASKS
from envs.tabletop.tasks.base import SPLITS, choose_instruction
from envs.tabletop.world import LEFT, RIGHT, BimanualIK, Pose, World
from envs.types import ARMS, CAMERAS, EE_DIM, QPOS_DIM, Diagnosis, Observation

ARM_CTRL = np.array([[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13]])

FINGER_CTRL = np.array([[6, 7], [14, 15]])

SUB_BLOCKS = 4
"""Joint targets move from the old to the new command in this many pieces: full steps would jerk the arms."""

MAX_JOINT_STEP_RAD = 0.3
"""Largest change of a joint target in one control step (3.75 rad/s)."""

WORKSPACE_M = np.array([[-0.9, 0.9], [-0.9, 0.9], [0.6, 1.6]])


class TabletopEnv(Bimanual):
    """One task and variant; see `envs.types.ControlledEnv` for what the methods promise.

    `image_size` is the side of the square camera images in pixels, None for state-only observations. `action_type` is
    "ee" (absolute tool poses, [16]) or "qpos" (joint targets, [14]). Success is latched; stepping on after it, or after
    `step_limit`, is allowed and keeps simulating. `success_tolerance` is times the distances that success allows;
    `expert_mode` how the expert acts, of `envs.tabletop.MODES`, None for as well as it can.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}
    exact_restore = True
    restore_method = "simulator"
    expert_from_any_state = True
    control_hz = CONTROL_HZ
    patience = round(1.28 * CONTROL_HZ)
    correction_limit = round(13.6 * CONTROL_HZ)

    def __init__(
        self,
        task: str,
        variant: str = "clean",
        image_size: int | None = 64,
        action_type: str = "ee",
        render_mode: str | None = None,
        instruction_split: str = "seen",
        render_size: tuple[int, int] = (240, 320),
        success_tolerance: float = 1.0,
        expert_mode: str | None = None,
    ) -> None:
        check_choice("task", task, tuple(TASKS))
        check_choice("variant", variant, VARIANTS)
        check_choice("action_type", action_type, ("ee", "qpos"))
        check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        check_choice("instruction_split", instruction_split, SPLITS)
        check_choice("expert_mode", expert_mode, (None, *MODES.get(task, {})))
        if image_size is not None and not 8 <= image_size <= MAX_WIDTH // len(CAMERAS):
            raise ValueError(f"image_size is {image_size}; use 8 to {MAX_WIDTH // len(CAMERAS)} pixels, or None")
        self.task, self.variant, self.image_size, self.action_type = task, variant, image_size, action_type
        self.render_mode, self.render_size, self.instruction_split = render_mode, render_size, instruction_split
        self._task = TASKS[task](success_tolerance, expert_mode)
        self._scene = (self._task.objects_xml(), variant == "randomized")
        self._template = compile_scene(*self._scene)
        self._camera_ids = {self._template.camera(i).name: i for i in range(self._template.ncam)}
        self._data = mujoco.MjData(self._template)
        self._use_model(copy.copy(self._template))
        self._ik = BimanualIK()
        self.action_space = action_space(action_type)
        self.observation_space = observation_space(image_size)
        self.step_limit = self._task.step_limit

    def _start(self, seed: int | None) -> None:
        self._build(int(self.np_random.integers(2**31)) if seed is None else seed)

    def advance(self, action: np.ndarray) -> None:
        """One control step (80 ms) without rendering; ValueError for a wrong shape or a number that is not finite."""
        self._seed()
        start = self._data.ctrl.copy()
        change = self._control(self._checked(action)) - start
        change[ARM_CTRL] = np.clip(change[ARM_CTRL], -MAX_JOINT_STEP_RAD, MAX_JOINT_STEP_RAD)
        for block in range(1, SUB_BLOCKS + 1):
            self._data.ctrl[:] = start + change * (block / SUB_BLOCKS)
            mujoco.mj_step(self._model, self._data, SUBSTEPS // SUB_BLOCKS)
        self._settle()
        self.step_count += 1
        self.success = self.success or self._task.succeeded(self._world)

    def observe(self, images: bool = True) -> Observation:
        """RoboTwin's observation dict; arms and grippers report commands, endpose the measured tool."""
        ctrl, pose = self._data.ctrl, self.ee_pose()
        joint_action: dict[str, Any] = {}
        endpose: dict[str, Any] = {}
        for i, arm in enumerate(ARMS):
            gripper = np.array(self._world.gripper(i))
            joint_action |= {f"{arm}_arm": ctrl[ARM_CTRL[i]], f"{arm}_gripper": gripper}
            endpose |= {f"{arm}_endpose": pose[8 * i : 8 * i + 7], f"{arm}_gripper": gripper}
        joint_action["vector"] = np.concatenate([np.append(ctrl[ARM_CTRL[i]], self._world.gripper(i)) for i in (0, 1)])
        observation = {"joint_action": joint_action, "endpose": endpose, "instruction": self.instruction}
        self._check_views(images)
        if images and self.image_size is not None:
            views = self._images(list(CAMERAS), self.image_size, self.image_size)
            observation["observation"] = {name: {"rgb": view} for name, view in zip(CAMERAS, views, strict=True)}
        return observation

    def ee_pose(self) -> np.ndarray:
        """Measured tool poses with commanded gripper values, float64 [16]."""
        arms = (LEFT, RIGHT)
        return _as_ee([self._world.tcp(arm) for arm in arms], [self._world.gripper(arm) for arm in arms])

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action for the current state, in this environment's action type."""
        commands = self._task.expert(self._world)
        ee = _as_ee(commands, [command.gripper for command in commands])
        if self.action_type == "ee":
            return ee
        joints = self._joints(ee)
        return np.concatenate([joints[0], ee[7:8], joints[1], ee[15:16]])

    def diagnose(self) -> Diagnosis:
        """Progress, stage and irreversible failure read from the simulator."""
        return self._task.diagnose(self._world)

    def truth(self) -> np.ndarray:
        """Object poses, float32 [n]; meanings in `truth_names`."""
        return self._task.truth(self._world)

    @property
    def truth_names(self) -> tuple[str, ...]:
        """Meaning of each number of `truth`."""
        return self._task.truth_names

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the task's sub-goals in order."""
        return self._task.stages

    def save(self) -> bytes:
        """Everything that decides how the episode continues; see `pack`."""
        fields = {
            "task": self.task,
            "variant": self.variant,
            "seed": self._seed(),
            "step_count": self.step_count,
            "success": self.success,
            "instruction": self.instruction,
            "rng": self.np_random.bit_generator.state,
        }
        return pack(self._model, self._data, fields)

    def load(self, data: bytes) -> None:
        """Continue from a snapshot of the same task and variant, bit for bit; ValueError if it does not fit."""
        header, state = unpack(data)
        self._check_owner((header["task"], header["variant"]))
        if header["seed"] != self.scene_seed:
            self._build(header["seed"])
        self.step_count, self.success = header["step_count"], header["success"]
        self.instruction = header["instruction"]
        self.np_random.bit_generator.state = header["rng"]
        restore(self._model, self._data, state)
        self._world.refresh()

    def render(self) -> np.ndarray | None:
        """A frame of the watching camera at `render_size`, uint8 [h, w, 3]; None without render_mode."""
        return None if self.render_mode is None else self._images(["watch_camera"], *self.render_size)[0]

    def watch(self, height: int, width: int) -> np.ndarray:
        """A frame of the watching camera, uint8 [height, width, 3]."""
        return self.render_camera("watch_camera", height, width)

    def steering_view(self, height: int, width: int) -> np.ndarray:
        """A frame of the robot's head camera, uint8 [height, width, 3]."""
        return self.render_camera("head_camera", height, width)

    def render_camera(self, camera: str, height: int, width: int) -> np.ndarray:
        """A frame of any named camera at any size up to 480 x 640, uint8 [height, width, 3]."""
        return self._images([camera], height, width)[0]

    def segment_camera(self, camera: str, height: int, width: int) -> np.ndarray:
        """Id of the geom under every pixel of a named camera, int32 [height, width], -1 for none."""
        self._seed()
        renderer = scene_renderer(self._template, *self._scene)
        return renderer.segment(self._model, self._data, self._camera_ids[camera], height, width)

    @property
    def world(self) -> World:
        """Simulator truth of the current state, for ground truth and reports; policies never see it."""
        return self._world

    def _images(self, cameras: list[str], height: int, width: int) -> np.ndarray:
        self._seed()
        renderer = scene_renderer(self._template, *self._scene)
        return renderer.render(self._model, self._data, [self._camera_ids[name] for name in cameras], height, width)

    def _seed(self) -> int:
        if self.scene_seed is None:
            raise RuntimeError("call reset(seed=...) first")
        return self.scene_seed

    def _use_model(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._world = World(model, self._data)

    def _build(self, seed: int) -> None:
        """The episode's first state; each kind of randomness has its own stream of the seed."""
        layout, looks, words = (np.random.default_rng([seed, stream]) for stream in range(3))
        if self.variant == "randomized":
            self._use_model(copy.copy(self._template))
            randomize(self._model, looks)
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[ARM_CTRL] = scene.HOME_JOINTS
        self._data.qpos[FINGER_CTRL] = scene.FINGER_TRAVEL_M
        self._data.ctrl[:] = self._data.qpos[: self._model.nu]
        self._task.reset(self._world, layout)
        self._settle()
        self.instruction = choose_instruction(self.task, self.instruction_split, words)
        self.scene_seed, self.step_count, self.success = seed, 0, False

    def _settle(self) -> None:
        """Bring positions and contacts up to date with qpos, so that a loaded state reads the same."""
        mujoco.mj_forward(self._model, self._data)
        self._world.refresh()

    def _control(self, action: np.ndarray) -> np.ndarray:
        """Servo targets [16] for an action."""
        if self.action_type == "ee":
            joints, grippers = self._joints(action), action[[7, 15]]
        else:
            joints, grippers = action.reshape(2, 7)[:, :6], action[[6, 13]]
            joints = np.clip(joints, *scene.JOINT_RANGE.T)
        target = np.empty(self._model.nu)
        target[ARM_CTRL] = joints
        target[FINGER_CTRL] = np.clip(grippers, 0.0, 1.0)[:, None] * scene.FINGER_TRAVEL_M
        return target

    def _joints(self, ee: np.ndarray) -> np.ndarray:
        """Joint targets [2, 6] of an `ee` action, searched from the present targets."""
        arms = se3.split_arms(ee)
        quat = se3.normalize(arms[:, 3:7])
        if (np.abs(quat).sum(axis=1) == 0).any():
            raise ValueError("action has a zero quaternion; use (1, 0, 0, 0) for no rotation")
        position = np.clip(arms[:, :3], *WORKSPACE_M.T)
        return self._ik.solve(self._data.ctrl[ARM_CTRL], position, quat)


def _as_ee(tools: Sequence[Pose | Command], grippers: Sequence[float]) -> np.ndarray:
    """Tool poses and gripper values of both arms as one `ee` vector, float64 [16]."""
    quats = se3.matrix_to_quat(np.stack([tool.rotation for tool in tools]))
    arms = zip(tools, quats, grippers, strict=True)
    return np.concatenate([part for tool, quat, gripper in arms for part in (tool.position, quat, [gripper])])


MAX_INSTRUCTION = 200

REACH_M = 2.0


def action_space(action_type: str) -> spaces.Box:
    """Box of "ee" (xyz in m, quat_wxyz, gripper, per arm, [16]) or "qpos" (6 rad, gripper, per arm, [14]) actions.

    Its middle is an action: w reaches to 3, so that the middle of the quaternions is no rotation, not 0 0 0 0.
    """
    if action_type == "ee":
        low = [-REACH_M] * 2 + [0.0] + [-1.0] * 4 + [0.0]
        high = [REACH_M] * 3 + [3.0] + [1.0] * 3 + [1.0]
    else:
        low = [*scene.JOINT_RANGE[:, 0], 0.0]
        high = [*scene.JOINT_RANGE[:, 1], 1.0]
    size = EE_DIM if action_type == "ee" else QPOS_DIM
    return spaces.Box(np.tile(low, 2), np.tile(high, 2), shape=(size,), dtype=np.float64)


def observation_space(image_size: int | None) -> spaces.Dict:
    """Dict space of the observation; without "observation" (the cameras) when `image_size` is None."""
    joint_action: dict[str, spaces.Space] = {}
    endpose: dict[str, spaces.Space] = {}
    gripper = spaces.Box(0.0, 1.0, shape=(), dtype=np.float64)
    for arm in ARMS:
        joints = spaces.Box(scene.JOINT_RANGE[:, 0], scene.JOINT_RANGE[:, 1], dtype=np.float64)
        joint_action |= {f"{arm}_arm": joints, f"{arm}_gripper": gripper}
        bound = np.array([REACH_M] * 3 + [1.0 + 1e-9] * 4)
        endpose |= {f"{arm}_endpose": spaces.Box(-bound, bound, dtype=np.float64), f"{arm}_gripper": gripper}
    joint_action["vector"] = action_space("qpos")
    layout: dict[str, spaces.Space] = {
        "joint_action": spaces.Dict(joint_action),
        "endpose": spaces.Dict(endpose),
        "instruction": spaces.Text(MAX_INSTRUCTION, charset=string.ascii_letters + string.digits + " .,;:'-"),
    }
    if image_size is not None:
        rgb = spaces.Box(0, 255, shape=(image_size, image_size, 3), dtype=np.uint8)
        layout["observation"] = spaces.Dict({camera: spaces.Dict({"rgb": rgb}) for camera in CAMERAS})
    return spaces.Dict(layout)


STATE = mujoco.mjtState.mjSTATE_INTEGRATION

FORMAT = "tabletop-1"


def pack(model: mujoco.MjModel, data: mujoco.MjData, fields: dict[str, Any]) -> bytes:
    """Snapshot of a simulator state and JSON-able task fields."""
    state = np.empty(mujoco.mj_stateSize(model, STATE))
    mujoco.mj_getState(model, data, state, STATE)
    header = {"format": FORMAT, "mujoco": mujoco.__version__, "size": state.size, **fields}
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + state.astype("<f8").tobytes()


def unpack(snapshot: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Header and state vector; ValueError if it is damaged or from another MuJoCo version."""
    head, separator, body = snapshot.partition(b"\n")
    try:
        header = json.loads(head)
    except ValueError:
        header = {}
    if not separator or not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"this is not a {FORMAT} snapshot; use the bytes that TabletopEnv.save returned")
    if header["mujoco"] != mujoco.__version__:
        raise ValueError(
            f"snapshot of MuJoCo {header['mujoco']}, but {mujoco.__version__} runs here; trajectories differ between "
            "versions, use the same one"
        )
    if len(body) != 8 * header["size"]:
        raise ValueError(f"snapshot is truncated: {len(body)} of {8 * header['size']} bytes of state")
    return header, np.frombuffer(body, dtype="<f8").copy()


def restore(model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
    """Set the state and recompute what follows from it; the second set keeps the solver's warm start."""
    mujoco.mj_setState(model, data, state, STATE)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, STATE)
