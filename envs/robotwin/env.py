"""`RoboTwinEnv`: RoboTwin 2.0 as a gymnasium environment with the tabletop's interface, `envs.types.ControlledEnv`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from envs import se3
from envs.bimanual import Bimanual, check_choice
from envs.pictures import fit
from envs.robotwin import layout, protocol
from envs.robotwin.connection import RoboTwin, RoboTwinError, RoboTwinServer, SeedRejectedError, ServerDiedError
from envs.robotwin.progress import ExpertPath
from envs.types import ARMS, CAMERAS, QPOS_DIM, Diagnosis, ExpertUnavailableError, Observation
from envs.types import ee_pose as ee_pose_of

UNLISTED_STEP_LIMIT = 1000
"""RoboTwin's limit for a task that its table does not name."""

DEMONSTRATION_HZ = 250 / 15
"""Of its demonstrations; the server tells the rate of an episode."""

STEP_LIMIT = 1.8
"""Where commands have one length, an episode ends after so many times its expert's: RoboTwin's own limits count motions
from rest to rest, and are six times as long."""

PATIENCE, CORRECTIONS = 2.0, 2.5
"""A policy is stuck after so many times the longest pause of its expert on this seed, counted a step longer since it
may begin within one; a correction, which may begin with the way home, takes at most so many times its length."""

ANEW = 1.3
"""An expert whose plan takes so many times the steps that it once needed from a state like this one begins the task
anew: with a fallen block in the other hand, say, by motions that no demonstration has. It is to try earlier states."""

ARM_QPOS = QPOS_DIM // 2

LAST_SEED = 2**32 - 1
"""The largest that numpy's global stream takes."""

SETTLE_STEPS = 8
"""The expert's last pose is held for so many steps before it is out of ideas."""


@dataclass(frozen=True)
class RestoreError:
    """Largest difference between two continuations of one snapshot, over the same actions."""

    method: str
    """"simulator" or "replay"."""
    num_steps: int
    pose: float
    """Of the measured `ee` poses (m, quaternion parts, gripper command)."""
    joints: float
    """Of the measured joint positions, rad."""
    same_success: bool

    @property
    def is_zero(self) -> bool:
        """Whether nothing differed."""
        return self.pose == 0.0 and self.joints == 0.0 and self.same_success


class RoboTwinEnv(Bimanual):
    """One task and task config (`variant`: demo_clean, demo_randomized, ...) of the user's RoboTwin checkout.

    The server starts with the first `reset` or `load`, and again when it crashed or hung: those two methods survive a
    crash, all others raise `ServerDiedError`. Environments that are used in turn may share one `server`. `image_size`
    is the side to which the views are scaled and padded, None for state-only observations, "native" for the camera's
    own. With `screen`, `reset` runs RoboTwin's expert first, as its evaluation does: seeds on which it fails raise
    `SeedRejectedError`; its report fills the instruction's slots, and its path measures progress.

    Steps take a varying number of physics steps. RoboTwin does nothing after success, and passes over plans that fail;
    after `step_limit` it goes on: `info` says `executed` and names the `skipped` arms. Grippers in observations are
    commands; `info["measured"]` has openings and joints as they are.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    expert_from_any_state = False
    """It is planned anew from any state, but may find no way."""

    def __init__(
        self,
        task: str,
        variant: str = "demo_clean",
        image_size: int | str | None = 224,
        action_type: str = "ee",
        instruction_split: str = "seen",
        screen: bool = True,
        server: RoboTwinServer | None = None,
        seeds_tried: int = 50,
        command_steps: int | None = None,
    ) -> None:
        self.server = server or RoboTwinServer(RoboTwin.from_environment())
        self.checkout = layout.detect(self.server.robotwin.root)
        check_choice("task", task, self.checkout.tasks())
        check_choice("variant", variant, self.checkout.task_configs())
        check_choice("action_type", action_type, ("ee", "qpos"))
        check_choice("instruction_split", instruction_split, ("seen", "unseen"))
        if isinstance(image_size, str):
            check_choice("image_size", image_size, ("native",))
        elif image_size is not None and image_size < 8:
            raise ValueError(f"image_size is {image_size}; use at least 8 pixels, 'native' or None")
        self.task, self.variant, self.image_size, self.action_type = task, variant, image_size, action_type
        self.instruction_split, self.screen, self.seeds_tried = instruction_split, screen, seeds_tried
        self.command_steps = command_steps
        self.step_limit = self.checkout.step_limits().get(task, UNLISTED_STEP_LIMIT)
        self.action_space = _action_space(action_type)
        self.control_hz = DEMONSTRATION_HZ
        self.patience = self.correction_limit = self.step_limit
        self.exact_restore = False
        """Whether `measure_restore` found no difference here; not taken for granted."""
        self.restore_method = "simulator"
        """"replay" where only the actions since the reset bring a state back."""
        self._step_info: dict[str, Any] = {}
        self._scene: dict[str, Any] = {}
        self._path: ExpertPath | None = None
        self._plan: np.ndarray | None = None
        self._plan_start = 0

    def advance(self, action: np.ndarray) -> None:
        """One `take_action` without rendering; ValueError for a wrong shape or a number that is not finite."""
        array = self._checked(action)
        if self._plan is not None and not np.array_equal(array, self._checked(self._planned())):
            self._plan = None
        result = self._ask("step", action=array, action_type=self.action_type)
        self._read_state(result)
        self._step_info = {key: result[key] for key in ("executed", "skipped", "physics_steps")}

    def observe(self, images: bool = True) -> Observation:
        """RoboTwin's observation dict; arms and grippers report commands, endpose the measured tool."""
        self._check_views(images)
        result = self._ask("observe", images=images)
        self._step_info["measured"] = result["measured"]
        return self._observation(result)

    def ee_pose(self) -> np.ndarray:
        """Measured tool poses with commanded gripper values, float64 [16]."""
        return ee_pose_of(self._ask("observe", images=False))

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action for the present state.

        RoboTwin's expert is an open-loop plan. It is played once from here, the scene is put back, and its recorded
        poses are the actions until another one is taken. ExpertUnavailableError where it does not succeed from here,
        where its actions did not, or where it would begin the task anew (`ANEW`).
        """
        if self._plan is None:
            self._plan, self._plan_start = self._expert_plan(), self.step_count
        if self.step_count - self._plan_start >= len(self._plan) + SETTLE_STEPS:
            raise ExpertUnavailableError("RoboTwin's expert succeeded, but a policy's steps along its path did not")
        return self._planned().copy()

    def watch(self, height: int, width: int) -> np.ndarray:
        """A frame of the head camera, its shape kept, on black, uint8 [height, width, 3]."""
        view = self._ask("observe", images=True)["observation"]["head_camera"]["rgb"]
        return fit(view, height, width)

    steering_view = watch

    def success_now(self) -> bool:
        """Whether the present scene satisfies the task; `success` is latched by every physics step before."""
        return self._ask("success")["success_now"]

    def diagnose(self) -> Diagnosis:
        """Progress along the expert's own path (see `envs.robotwin.progress`), NaN where the seed was not screened."""
        if self.success or self._path is None:
            return Diagnosis(1.0 if self.success else np.nan, int(self.success), None)
        failure = "dropped" if self._path.has_dropped(self._scene) else None
        return Diagnosis(self._path.progress(self._scene), 0, failure)

    def truth(self) -> np.ndarray:
        """Of each object of the task xyz and `scene.heading`, then joints of articulated ones, float32 [n]."""
        return self._scene["truth"].astype(np.float32)

    def save(self) -> bytes:
        """Everything that decides how the episode continues; the episode itself goes on from the restored state."""
        return self._ask("save")["snapshot"]

    def load(self, snapshot: bytes) -> None:
        """Continue from a snapshot of the same task and config; starts a server if there is none."""
        try:
            identity = protocol.loads(snapshot)["identity"]
        except (protocol.ProtocolError, KeyError) as error:
            raise ValueError(f"this is not a snapshot that RoboTwinEnv.save returned: {error}") from None
        self._check_owner((identity["task"], identity["config"]))
        if identity["seed"] != self.scene_seed:
            self._path = None
        result = self.server.begin(self, "restore", snapshot=snapshot)
        self._begin(identity["seed"], result)

    def measure_restore(self, actions: np.ndarray) -> RestoreError:
        """Run `actions` [n, 16 or 14] twice from a snapshot of the present state and compare; the state is put back.

        Sets `exact_restore`. Contacts may differ where free motion does not: measure in the states that count.
        """
        start = self.save()
        runs = []
        for _ in range(2):
            self.load(start)
            poses, joints = [], []
            for action in actions:
                self.advance(action)
                result = self._ask("observe", images=False)
                poses.append(ee_pose_of(result))
                joints.append(np.concatenate([result["measured"][f"{arm}_arm"] for arm in ARMS]))
            runs.append((np.array(poses), np.array(joints), self.success))
        self.load(start)
        (poses_a, joints_a, success_a), (poses_b, joints_b, success_b) = runs
        pose, joint = _largest(poses_a - poses_b), _largest(joints_a - joints_b)
        error = RestoreError(self.restore_method, len(actions), pose, joint, success_a == success_b)
        self.exact_restore = error.is_zero
        return error

    def close(self) -> None:
        """End the server."""
        self.server.close()

    def _start(self, seed: int | None) -> None:
        if seed is not None:
            return self._start_seed(seed)
        for _ in range(self.seeds_tried):
            try:
                return self._start_seed(int(self.np_random.integers(2**31)))
            except SeedRejectedError as error:
                last = error
        raise RuntimeError(f"RoboTwin rejected {self.seeds_tried} seeds of {self.task} ({self.variant}); last: {last}")

    def _start_seed(self, seed: int) -> None:
        if not 0 <= seed <= LAST_SEED:
            raise ValueError(f"seed is {seed}; RoboTwin takes 0 to {LAST_SEED}")
        split, screen = self.instruction_split, self.screen
        picture_px = None if isinstance(self.image_size, str) else self.image_size
        names = {"task": self.task, "config": self.variant}
        robot = {"command_steps": self.command_steps, "picture_px": picture_px}
        result = self.server.begin(self, "reset", **names, seed=seed, instruction=split, screen=screen, robot=robot)
        if self.action_type == "qpos" and result["qpos_dim"] != QPOS_DIM:
            raise ValueError(
                f"the embodiment of {self.variant} has {result['qpos_dim']} qpos numbers, not {QPOS_DIM} "
                "(aloha-agilex); use action_type='ee', or a config with that embodiment"
            )
        self._path = ExpertPath.of(result["expert_path"])
        self._begin(seed, result)

    def _begin(self, seed: int, result: dict) -> None:
        self.scene_seed, self.instruction, self.step_limit = seed, result["instruction"], result["step_limit"]
        self.restore_method, self._step_info, self._plan = result["restore_method"], {}, None
        self.control_hz, self.simulation = result["control_hz"], result["simulation"]
        self.patience = self.correction_limit = self.step_limit
        if self._path is not None:
            if self.simulation["command_steps"] is not None:
                self.step_limit = min(self.step_limit, round(STEP_LIMIT * self._path.num_steps))
            self.patience = round(PATIENCE * (self._path.pause + 1))
            self.correction_limit = max(1, round(CORRECTIONS * self._path.num_steps))
        self._read_state(result)

    def _read_state(self, result: dict) -> None:
        self.step_count, self.success, self._scene = result["step_count"], result["success"], result["scene"]

    def _ask(self, method: str, **params: Any) -> dict:
        return self.server.ask(self, method, **params)

    def _info(self) -> dict[str, Any]:
        return super()._info() | self._step_info

    def _observation(self, result: dict) -> Observation:
        observation: Observation = {key: result[key] for key in ("joint_action", "endpose")}
        observation["instruction"] = self.instruction
        if "observation" in result:
            views = {camera: result["observation"][camera]["rgb"] for camera in CAMERAS}
            if not isinstance(self.image_size, str) and self.image_size is not None:
                views = {camera: fit(view, self.image_size) for camera, view in views.items()}
            observation["observation"] = {camera: {"rgb": view} for camera, view in views.items()}
        return observation

    def _checked(self, action: np.ndarray) -> np.ndarray:
        array = super()._checked(action)
        if self.action_type == "ee":
            for start in (3, 11):
                quat = array[start : start + 4]
                if not quat.any():
                    raise ValueError("action has a zero quaternion; use (1, 0, 0, 0) for no rotation")
                array[start : start + 4] = se3.normalize(quat)
        return array

    def _expert_plan(self) -> np.ndarray:
        """The expert's actions from here on, [T, 16 or 14]."""
        result = self._ask("expert", record="state")
        if not result["success"]:
            why = result["problem"] or ("it does not succeed" if result["planned"] else "it finds no plan")
            raise ExpertUnavailableError(f"RoboTwin's expert cannot solve the task from step {self.step_count}: {why}")
        if not result["frames"]:
            raise ExpertUnavailableError("RoboTwin's expert succeeded without a physics step")
        needed, taken = self._path.remaining(self._scene) if self._path else None, len(result["frames"])
        if needed is not None and taken > ANEW * max(needed, 1):
            raise ExpertUnavailableError(
                f"RoboTwin's expert begins the task anew from step {self.step_count}: {taken} steps instead of {needed}"
            )
        if self.action_type == "ee":
            return np.array([self._checked(ee_pose_of(frame)) for frame in result["frames"]])
        return np.array([frame["joint_action"]["vector"] for frame in result["frames"]])

    def _planned(self) -> np.ndarray:
        """The plan's action for this step; its last one after its end."""
        assert self._plan is not None
        return self._plan[min(self.step_count - self._plan_start, len(self._plan) - 1)]


def _action_space(action_type: str) -> spaces.Box:
    """Box of the actions, without limits on positions and joints: they are the embodiment's."""
    if action_type == "ee":
        high = np.array([np.inf] * 3 + [1.0] * 5)
        low = np.array([-np.inf] * 3 + [-1.0] * 4 + [0.0])
    else:
        high, low = np.array([np.inf] * (ARM_QPOS - 1) + [1.0]), np.array([-np.inf] * (ARM_QPOS - 1) + [0.0])
    return spaces.Box(np.tile(low, 2), np.tile(high, 2), dtype=np.float64)


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max()) if difference.size else 0.0


__all__ = ["RoboTwin", "RoboTwinEnv", "RoboTwinError", "SeedRejectedError", "ServerDiedError"]
