"""A bimanual environment without physics: the left gripper walks along x to a goal, and falls off at y > 0.1."""

import json
from typing import Any

import numpy as np

from envs.types import BIMANUAL, CAMERAS, Diagnosis, Observation

START = np.array([0, 0, 0, 1, 0, 0, 0, 1.0] * 2)
GOAL_X = 1.0
STEP = 0.02


class ToyEnv:
    """Success when left x reaches `GOAL_X`; the image brightness is x."""

    exact_restore = True
    restore_method = "simulator"
    expert_from_any_state = True
    simulation = {}
    control_hz = 12.5
    patience = 16
    correction_limit = 170
    step_limit = 120
    task = "toy"
    variant = "clean"
    instruction = "walk along x"

    def __init__(self) -> None:
        self.rendered = 0
        self.reset(seed=0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        self.pose, self.step_count = START.copy(), 0
        self.pose[8] = np.random.default_rng(seed).uniform()
        return self.observe(), {}

    @property
    def success(self) -> bool:
        return bool(self.pose[0] >= GOAL_X and self.pose[1] <= 0.1)

    def advance(self, action: np.ndarray) -> None:
        self.pose[:2] += np.clip(action[:2] - self.pose[:2], -STEP, STEP)
        self.step_count += 1

    def observe(self, images: bool = True) -> Observation:
        self.rendered += 1
        picture = np.full((4, 4, 3), int(200 * np.clip(self.pose[0], 0, 1)), dtype=np.uint8)
        endpose = {
            f"{arm}_{key}": value
            for arm, half in zip(("left", "right"), self.pose.reshape(2, 8), strict=True)
            for key, value in (("endpose", half[:7].copy()), ("gripper", half[7]))
        }
        return {
            "observation": {camera: {"rgb": picture} for camera in CAMERAS},
            "endpose": endpose,
            "instruction": self.instruction,
        }

    layout = BIMANUAL

    def state(self) -> np.ndarray:
        return self.pose.copy()

    def expert_action(self) -> np.ndarray:
        action = self.pose.copy()
        action[:2] += np.clip([GOAL_X + STEP - self.pose[0], -self.pose[1]], -STEP, STEP)
        return action

    def diagnose(self) -> Diagnosis:
        fell = "fell" if self.pose[1] > 0.1 else None
        return Diagnosis(progress=float(np.clip(self.pose[0], 0, 1)), stage=int(self.success), failure=fell)

    def truth(self) -> np.ndarray:
        return self.pose[:2].astype(np.float32)

    def save(self) -> bytes:
        return json.dumps([self.pose.tolist(), self.step_count]).encode()

    def load(self, snapshot: bytes) -> None:
        pose, self.step_count = json.loads(snapshot)
        self.pose = np.array(pose)
