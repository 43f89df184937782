"""Any `gymnasium.Env` with a Box action as an environment of the lab: what cannot be read off it is declared.

A user's file has a function `make(task: str, variant: str) -> Declaration`, which `env.backend` names. Letters: A
numbers of a command, S of a state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.commands import CommandError
from envs.pictures import fit
from envs.types import MAX_DIM, Diagnosis, ExpertUnavailableError, Layout, Numbers, Observation

STUCK_SHARE = 0.25
"""Of the step limit: where nothing else is declared, a policy is stuck after so many control steps without progress."""

Reading = str | Callable[[gymnasium.Env], Any]
"""Where something stands: a key ("agent_pos", "images/top", "" for the whole) or a function of the environment."""


@dataclass(frozen=True)
class Declaration:
    """An environment, and what it does not say of itself; nothing is guessed."""

    env: gymnasium.Env
    """Its action is a Box [A] of 1 to 32 numbers; commands beyond the Box are executed at its edge."""
    control_hz: float
    """Control steps a second."""
    numbers: Numbers
    """What a command is; see `envs.types.Layout`."""
    cameras: Mapping[str, Reading]
    """Views by name, uint8 [h, w, 3]; keys are of the observation."""
    state: Reading
    """What the policy measures, [S] of 1 to 32 numbers; a key is of the observation."""
    success: Reading
    """Whether the task is solved now; a key is of `info`."""
    instructions: Sequence[str]
    """An episode has one of them, by its seed."""
    step_limit: int
    """Control steps after which an episode ends; a limit of the environment's own is passed over."""
    unseen_instructions: Sequence[str] = ()
    """Those of evaluations with `eval.instructions: unseen`; without any, the same."""
    save: Callable[[gymnasium.Env], bytes] | None = None
    """The whole state of the simulator. Without `save` and `load` an episode is repeated from its seed."""
    load: Callable[[gymnasium.Env, bytes], Any] | None = None
    """Sets it, and gives the observation there."""
    expert: Callable[[gymnasium.Env, Any], np.ndarray | None] | None = None
    """(environment, observation) -> a command [A] for the present state, None where it has none. It may look at
    everything, and must not remember: it is asked in restored states too."""
    progress: Callable[[gymnasium.Env], float] | None = None
    """In 0..1, 1 at success. Without it a policy fails by time alone, never by being stuck or going back."""
    failure: Callable[[gymnasium.Env], str | None] | None = None
    """Name of an irreversible event, None while there is none. An end without success is one, "terminated"."""
    patience: int | None = None
    """Control steps without progress after which a policy is stuck; None: a quarter of the step limit."""
    correction_limit: int | None = None
    """Control steps in which the expert solves the task from any state, if it does; None: the step limit."""


class DeclarationError(ValueError):
    """A declaration that does not fit its environment, in one line."""


class DeclaredEnv:
    """A declared environment with the interface of `envs.types.ControlledEnv`; pictures are scaled to squares."""

    simulation: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, declared: Declaration, task: str, variant: str, image_size: int, instruction_split: str = "seen"
    ) -> None:
        """DeclarationError where the declaration cannot be meant; what only an episode shows comes with `reset`."""
        _check(declared)
        self.declared, self.env = declared, declared.env
        self.task, self.variant, self.image_size = task, variant, image_size
        self.control_hz, self.step_limit = declared.control_hz, declared.step_limit
        self.patience = declared.patience or max(1, round(STUCK_SHARE * declared.step_limit))
        self.correction_limit = declared.correction_limit or declared.step_limit
        self.expert_from_any_state = declared.expert is not None
        self.exact_restore = declared.load is not None
        self.restore_method = "simulator" if self.exact_restore else "replay"
        unseen = declared.unseen_instructions if instruction_split == "unseen" else ()
        self._texts = tuple(unseen or declared.instructions)
        self._space: Any = declared.env.action_space
        self.seed = 0
        self._begin(None, {})

    def _begin(self, observation: Any, info: Mapping[str, Any]) -> None:
        self.step_count, self._taken = 0, list[list[float]]()
        self._seen, self.success, self._ended = observation, False, False
        self.instruction = self._texts[self.seed % len(self._texts)]

    @cached_property
    def layout(self) -> Layout:
        """See `ControlledEnv`; from the first state, for which the episode of seed 0 is begun where there is none."""
        if self._seen is None:
            self.reset(seed=0)
        size = np.asarray(self._read("state", self.declared.state)).size
        try:
            return Layout(self.declared.numbers, self._space.shape[0], size, tuple(self.declared.cameras))
        except ValueError as error:
            raise DeclarationError(str(error)) from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Begin the episode of a seed."""
        if seed is None:
            raise ValueError("an episode needs its seed: it is repeated from it")
        self.seed = int(seed)
        observation, info = self.env.reset(seed=self.seed, options=options)
        self._begin(observation, info)
        return self.observe(), {}

    def advance(self, action: np.ndarray) -> None:
        """One control step; an episode that has ended stands still."""
        command = np.array(action, dtype=np.float64)
        if command.shape != self._space.shape:
            raise ValueError(f"action has shape {command.shape}; the environment takes {self._space.shape}")
        if not np.isfinite(command).all():
            raise CommandError(f"action has numbers that are not finite at {np.flatnonzero(~np.isfinite(command))}")
        self.step_count += 1
        self._taken.append(command.tolist())
        if self._ended:
            return
        inside = np.clip(command, self._space.low, self._space.high).astype(self._space.dtype)
        self._seen, _, self._ended, _, info = self.env.step(inside)
        self.success = bool(_value("success", self.declared.success, info, self.env, "info"))

    def observe(self, images: bool = True) -> Observation:
        """See `envs.types.Observation`."""
        views = {name: {"rgb": self._view(name)} for name in self.declared.cameras} if images else {}
        told = {"cameras": tuple(self.declared.cameras), "state": self.state(), "instruction": self.instruction}
        return {"observation": views} | told

    def _view(self, name: str) -> np.ndarray:
        """A camera's picture, scaled to fit the square."""
        view = np.asarray(self._read(f"camera {name}", self.declared.cameras[name]))
        if view.dtype != np.uint8 or view.ndim != 3 or view.shape[2] != 3 or 0 in view.shape:
            raise DeclarationError(f"camera {name} gives {view.dtype} {list(view.shape)}; expected uint8 [h, w, 3]")
        return fit(view, self.image_size)

    def state(self) -> np.ndarray:
        """See `ControlledEnv`."""
        found = np.asarray(self._read("state", self.declared.state), dtype=np.float64)
        if found.ndim != 1 or not 1 <= len(found) <= MAX_DIM or not np.isfinite(found).all():
            raise DeclarationError(f"state is {found.tolist()!s:.100}; expected 1 to {MAX_DIM} finite numbers")
        return found.copy()

    @property
    def command_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the Box, float64 [A] each; infinite where it has none."""
        return self._space.low.astype(np.float64), self._space.high.astype(np.float64)

    def _read(self, what: str, reading: Reading) -> Any:
        return _value(what, reading, self._seen, self.env, "observation")

    def expert_action(self) -> np.ndarray:
        """See `ControlledEnv`."""
        command = None if self.declared.expert is None else self.declared.expert(self.env, self._seen)
        if command is None:
            raise ExpertUnavailableError(f"the expert of {self.task} has no command at step {self.step_count}")
        return np.array(command, dtype=np.float64)

    def diagnose(self) -> Diagnosis:
        """See `ControlledEnv`."""
        progress = np.nan if self.declared.progress is None else float(self.declared.progress(self.env))
        failure = None if self.declared.failure is None else self.declared.failure(self.env)
        if self._ended and not self.success:
            failure = failure or "terminated"
        return Diagnosis(1.0 if self.success else progress, int(self.success), None if self.success else failure)

    def truth(self) -> np.ndarray:
        """None is declared."""
        return np.zeros(0, dtype=np.float32)

    def watch(self, height: int, width: int) -> np.ndarray:
        """The first camera, centred on black."""
        name, read = next(iter(self.declared.cameras.items()))
        return fit(np.asarray(self._read(f"camera {name}", read)), height, width)

    steering_view = watch

    def save(self) -> bytes:
        """See `ControlledEnv`: one line about the episode, then the simulator's state, or nothing."""
        about = {
            **{"task": self.task, "variant": self.variant, "seed": self.seed},
            **{"steps": self.step_count, "success": self.success, "ended": self._ended},
        }
        if self.declared.save is None:
            return json.dumps(about | {"taken": self._taken}).encode()
        return json.dumps(about).encode() + b"\n" + self.declared.save(self.env)

    def load(self, snapshot: bytes) -> None:
        """See `ControlledEnv`."""
        head, _, state = snapshot.partition(b"\n")
        about = json.loads(head)
        if (about["task"], about["variant"]) != (self.task, self.variant):
            raise ValueError(f"snapshot is of {about['task']} ({about['variant']}), not {self.task} ({self.variant})")
        if self.declared.load is None:
            self.reset(seed=about["seed"])
            for action in about["taken"]:
                self.advance(np.array(action))
            return
        self.seed = about["seed"]
        self._begin(self.declared.load(self.env, state), {})
        self.step_count, self.success, self._ended = about["steps"], about["success"], about["ended"]


def _value(what: str, reading: Reading, tree: Any, env: gymnasium.Env, where: str) -> Any:
    """What stands under a key of a tree, or what a function makes of the environment."""
    if callable(reading):
        return reading(env)
    found = tree
    for key in filter(None, reading.split("/")):
        if not isinstance(found, Mapping) or key not in found:
            there = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"one {type(found).__name__}"
            raise DeclarationError(f"{what} is {reading!r}, which the {where} has not; it has {there}")
        found = found[key]
    return found


def _check(declared: Declaration) -> None:
    """DeclarationError for what no episode is needed to see."""
    space: Any = declared.env.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not 1 <= space.shape[0] <= MAX_DIM:
        raise DeclarationError(f"the action space is {space}; expected a Box of 1 to {MAX_DIM} numbers")
    if (declared.save is None) != (declared.load is None):
        raise DeclarationError("save and load belong together; declare both, or none")
    if not isinstance(declared.cameras, Mapping):
        raise DeclarationError(f"cameras are {declared.cameras!r:.80}; write {{name: key of the observation}}")
    if not declared.cameras or not all("/" not in name and name for name in declared.cameras):
        raise DeclarationError(f"cameras are {list(declared.cameras)}; name at least one, without slashes")
    if not declared.instructions or not all(
        text.strip() for text in (*declared.instructions, *declared.unseen_instructions)
    ):
        raise DeclarationError("instructions must hold at least one text, none of them empty")
    if not (np.isfinite(declared.control_hz) and declared.control_hz > 0):
        raise DeclarationError(f"control_hz is {declared.control_hz}; expected control steps a second, above 0")
    for name in ("step_limit", "patience", "correction_limit"):
        if (count := getattr(declared, name)) is not None and not (count >= 1 and count == int(count)):
            raise DeclarationError(f"{name} is {count}; expected 1 or more control steps")
