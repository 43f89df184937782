"""What all bimanual environments share: gymnasium's `reset` and `step` on top of `advance` and `observe`.

It has the last look at commands before anything moves (`envs.commands`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np

from envs.commands import CommandError, check_commands
from envs.types import BIMANUAL, EE_DIM, QPOS_DIM, Layout, Observation

ACTION_SIZES = {"ee": EE_DIM, "qpos": QPOS_DIM}


class Bimanual(gymnasium.Env):
    """One task and variant; see `envs.types.ControlledEnv` for what the methods promise.

    A subclass sets the fields below, starts episodes in `_start` and steps them in `advance`.
    """

    task: str
    variant: str
    image_size: Any
    """Side of the camera images, pixels; None: state-only observations."""
    action_type: str
    """"ee" (absolute tool poses, [16]) or "qpos" (joint targets, [14])."""
    step_limit: int
    layout: Layout = BIMANUAL
    simulation: Mapping[str, Any] = MappingProxyType({})
    scene_seed: int | None = None
    """Of the present episode; None before the first."""
    step_count: int = 0
    success: bool = False
    instruction: str = ""

    @abstractmethod
    def _start(self, seed: int | None) -> None:
        """Begin the episode that `seed` names; without one, the next of the stream `np_random`."""

    @abstractmethod
    def advance(self, action: np.ndarray) -> None:
        """One control step without rendering."""

    @abstractmethod
    def observe(self, images: bool = True) -> Observation:
        """The current observation."""

    @abstractmethod
    def ee_pose(self) -> np.ndarray:
        """Measured poses of both arms, float64 [16], without rendering."""

    def state(self) -> np.ndarray:
        """The measured state: both poses."""
        return self.ee_pose()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that `seed` names (the next of the previous stream if None)."""
        super().reset(seed=seed)
        self._start(None if seed is None else int(seed))
        return self.observe(self.image_size is not None), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """`advance`, then `observe`; reward 1 in the step that first succeeds, which terminates the episode."""
        before = self.success
        self.advance(action)
        truncated = self.step_count >= self.step_limit and not self.success
        observation = self.observe(self.image_size is not None)
        return observation, float(self.success and not before), self.success, truncated, self._info()

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, "step_count": self.step_count}

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """A copy of the action; ValueError for a wrong shape, CommandError for what no arm may be sent to."""
        size, array = ACTION_SIZES[self.action_type], np.array(action, dtype=np.float64)
        if array.shape != (size,):
            raise ValueError(f"action has shape {array.shape}; action_type={self.action_type!r} takes ({size},)")
        if not np.isfinite(array).all():
            wrong = np.flatnonzero(~np.isfinite(array)).tolist()
            raise CommandError(f"action has numbers that are not finite at {wrong}")
        if self.action_type == "ee":
            check_commands(array)
        return array

    def _check_views(self, images: bool) -> None:
        """ValueError where images are asked of an environment without."""
        if images and self.image_size is None:
            raise ValueError("this environment has image_size=None; construct it with a size to observe images")

    def _check_owner(self, theirs: tuple[str, str]) -> None:
        """ValueError for a snapshot of another (task, variant)."""
        if theirs != (self.task, self.variant):
            raise ValueError(
                f"snapshot is of {theirs[0]} ({theirs[1]}), this environment is {self.task} ({self.variant}); load it "
                "into an environment of the same task and variant"
            )


def check_choice(name: str, value: object, choices: Any) -> None:
    """ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(str(choice) for choice in choices)}")
