"""The one object in which all scenes of a task are set up, and what outlives a scene: planners, and the expert's notes.

As in RoboTwin's own evaluation planners are made once, and what only `play_once` sets (an arm, a height from which to
measure) is there when `check_success` reads it. Unlike there, scenes come in any order, so everything else that an
earlier scene has left is forgotten. Read by path in RoboTwin's own interpreter, as `server.py` says.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import random
import traceback
from typing import Any

import numpy as np

FIRST_HELD_OUT = 100_000
"""RoboTwin records demonstrations on seeds below this one, and evaluates, on textures of their own, from it on."""
JOIN_S = 5.0
"""What a planner's process may take to end."""
CLEAR_CACHE_EVERY = 5


class Task:
    """Scenes of one task, one after another, in one RoboTwin object."""

    def __init__(self, kind: type) -> None:
        self.env: Any = None
        """RoboTwin's object, while a scene stands."""
        self._object = kind()
        self._robot: Any = None
        """RoboTwin's robot with its planners, which a new scene takes over."""
        self._set_by_scene: set[str] = set()
        self._num_scenes = 0

    def set_up(self, seed: int, step_limit: int, args: dict[str, Any]) -> None:
        """The scene of a seed, with the textures of training below `FIRST_HELD_OUT`; raises what RoboTwin raises.

        RoboTwin knows step limits in evaluation mode only, which also means held-out textures; so they are set here.
        """
        self.clear()
        env, held_out = self._object, seed >= FIRST_HELD_OUT
        random.seed(seed)
        try:
            env.setup_demo(now_ep_num=0, seed=seed, is_test=held_out, eval_mode=held_out, **args)
        except BaseException as error:
            self.env = env
            self.clear()
            if type(error).__name__ != "UnStableError":
                self._end_planners()
            raise
        env.step_lim = step_limit
        self.env, self._set_by_scene = env, set(vars(env))

    def added(self) -> dict[str, Any]:
        """Attributes that did not come with the scene: those that its expert has set since."""
        return {name: value for name, value in vars(self.env).items() if name not in self._set_by_scene}

    def clear(self) -> None:
        """Release the scene, if one stands, and forget what it has left on the object; planners stay."""
        if self.env is None:
            return
        env, self.env = self.env, None
        self._robot = vars(env).get("robot")
        self._num_scenes += 1
        try:
            env.close_env(clear_cache=self._num_scenes % CLEAR_CACHE_EVERY == 0)
        finally:
            vars(env).clear()
            if self._robot is not None:
                env.robot = self._robot

    def close(self) -> None:
        """Release the scene and end the planners, whose processes are the only ones that this one has started."""
        with contextlib.suppress(Exception):
            self.clear()
        self._end_planners()

    def _end_planners(self) -> None:
        self._robot = None
        vars(self._object).pop("robot", None)
        for child in multiprocessing.active_children():
            child.terminate()
            child.join(JOIN_S)
            if child.is_alive():
                child.kill()


def choose_instruction(module: str, task: str, info: dict[str, Any], split: str, seed: int) -> str:
    """One of the texts that RoboTwin's module makes for a scene, drawn by the seed; global streams stay as they are."""
    streams = random.getstate(), np.random.get_state()
    random.seed(seed)
    try:
        made = importlib.import_module(module).generate_episode_descriptions(task, [info], 100)
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
    texts = made[0][split] if made else []
    if not texts:
        return task.replace("_", " ")
    return str(texts[np.random.RandomState(seed).randint(len(texts))])


def said(error: BaseException) -> str:
    """What was raised, in one line, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line} ({os.path.basename(last.filename)}, line {last.lineno})"
