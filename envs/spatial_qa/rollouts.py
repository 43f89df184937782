"""Rollouts of the tabletop tasks: a snapshot of every state with what happened later, and images of any of them.

A block of neighbouring seeds shares rollouts, which are kept for a while: simulating one takes longer than a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from envs.spatial_qa.draws import give_up_if
from envs.spatial_qa.items import SEEDS_PER_BLOCK, Knobs, integers, tasks_of
from envs.spatial_qa.still_life import CAMERA, SEGMENT_SIZE, Camera, pixels_of
from envs.tabletop.env import TabletopEnv
from envs.types import ARMS, Diagnosis

OBJECTS = {
    "handover_block": {"block": "the red block"},
    "stack_blocks_two": {"red": "the red block", "green": "the green block"},
    "blocks_ranking_rgb": {"red": "the red block", "green": "the green block", "blue": "the blue block"},
    "grab_roller": {"roller": "the roller"},
    "lift_pot": {"pot": "the pot"},
}
"""Bodies that move, and what they are called."""
STEPS = {
    "handover_block": (
        "lift the block with the left arm",
        "take the block with the right arm",
        "let go with the left arm",
        "put the block on the pad",
    ),
    "stack_blocks_two": (
        "move the red block to the middle",
        "lift the green block",
        "put the green block on the red block",
    ),
    "grab_roller": ("grasp the roller with both grippers", "lift the roller"),
    "lift_pot": ("grasp both handles of the pot", "lift the pot"),
}
"""What reaches each stage of a task. `blocks_ranking_rgb` has its own, see `Rollout.steps`."""
AFTER_END = 18
"""Control steps recorded after success, while the hands leave, or after an irreversible failure."""
ROLLOUTS_PER_BLOCK = 8
ATTEMPTS_PER_ROLLOUT = 6
MIN_SHARE = 0.001
MOVED_M = 0.03
RESTING_M = 0.008
PUSH_M, PUSH_STEPS = 0.025, 8
"""Of a clumsy rollout: each of its offsets (standard deviation per axis) is held for so many control steps."""
DROP_PROBABILITY = 0.15
"""Of opening both hands for `PUSH_STEPS` in a clumsy rollout."""


@dataclass(frozen=True)
class Rollout:
    """T + 1 recorded states."""

    task: str
    variant: str
    seed: int
    instruction: str
    clumsy: bool
    """Whether the commands were disturbed."""
    snapshots: tuple[bytes, ...]
    progress: np.ndarray
    """[T + 1], 1 exactly where the task is done."""
    stages: np.ndarray
    """[T + 1]."""
    failures: tuple[str | None, ...]
    tools: np.ndarray
    """World positions of both tools, [T + 1, 2, 3]."""
    objects: dict[str, np.ndarray]
    """World positions of each body of `OBJECTS`, [T + 1, 3]."""

    @property
    def name(self) -> str:
        """Scene id."""
        return f"{self.task}.{self.variant}{'.clumsy' if self.clumsy else ''}:{self.seed}"

    @property
    def succeeded(self) -> bool:
        """Whether the last state is a success."""
        return bool(self.progress[-1] == 1.0)

    def steps(self) -> list[tuple[str, int]]:
        """What is done in a successful rollout, in order, with the first state from which on it stays done.

        Steps that are done at the start are left out. Of `blocks_ranking_rgb`: each block's way to its last place.
        """
        if self.task == "blocks_ranking_rgb":
            done = [
                (f"move {OBJECTS[self.task][name]} into the row", _rest_time(path))
                for name, path in self.objects.items()
            ]
            done.sort(key=lambda step: step[1])
        else:
            done = [(text, _reached(self.stages, stage + 1)) for stage, text in enumerate(STEPS[self.task])]
        return [(text, time) for text, time in done if time > 0]


def _rest_time(path: np.ndarray) -> int:
    """The first state from which on a body stays where it ends; 0 for one that never leaves its place."""
    away = np.linalg.norm(path - path[-1], axis=1) > RESTING_M
    far = np.linalg.norm(path - path[-1], axis=1).max() > MOVED_M
    return int(np.flatnonzero(away)[-1]) + 1 if far else 0


def _reached(stages: np.ndarray, stage: int) -> int:
    below = np.flatnonzero(stages < stage)
    return int(below[-1]) + 1 if len(below) else 0


@lru_cache(maxsize=12)
def environment(task: str, variant: str) -> TabletopEnv:
    """This process's environment of a task."""
    return TabletopEnv(task, variant, image_size=None)


@lru_cache(maxsize=12)
def rollout(task: str, variant: str, seed: int, clumsy: bool, num_steps: int | None = None) -> Rollout:
    """The scripted expert from a seed's start, to `AFTER_END` steps after its end or to the step limit.

    With `num_steps` only so many control steps of it, for who asks about the start alone.
    """
    env = environment(task, variant)
    env.reset(seed=seed)
    rng = np.random.default_rng([seed, 77])
    states, after, disturbance = [_state(env)], 0, np.zeros((2, 4))
    limit = env.step_limit if num_steps is None else num_steps
    while env.step_count < limit and after < AFTER_END:
        if clumsy and env.step_count % PUSH_STEPS == 0:
            disturbance[:, :3] = rng.normal(scale=PUSH_M, size=(2, 3))
            disturbance[:, 3] = rng.random() < DROP_PROBABILITY
        action = env.expert_action().reshape(2, 8)
        action[:, :3] += disturbance[:, :3]
        action[:, 7] = np.maximum(action[:, 7], disturbance[:, 3])
        env.advance(action.ravel())
        states.append(_state(env))
        after += bool(env.success or states[-1].diagnosis.failure)
    return Rollout(
        task=task,
        variant=variant,
        seed=seed,
        instruction=env.instruction,
        clumsy=clumsy,
        snapshots=tuple(state.snapshot for state in states),
        progress=np.array([state.diagnosis.progress for state in states]),
        stages=np.array([state.diagnosis.stage for state in states]),
        failures=tuple(state.diagnosis.failure for state in states),
        tools=np.stack([state.tools for state in states]),
        objects={name: np.stack([state.objects[name] for state in states]) for name in OBJECTS[task]},
    )


@dataclass(frozen=True)
class _State:
    snapshot: bytes
    diagnosis: Diagnosis
    tools: np.ndarray
    objects: dict[str, np.ndarray]


def _state(env: TabletopEnv) -> _State:
    tools = np.stack([env.world.tcp(arm).position for arm in range(len(ARMS))])
    objects = {name: env.world.body(name).position for name in OBJECTS[env.task]}
    return _State(env.save(), env.diagnose(), tools, objects)


def rollout_of(
    seed: int,
    attempt: int,
    knobs: Knobs,
    tasks: Sequence[str],
    clumsy: bool = False,
    num_steps: int | None = None,
) -> Rollout:
    """The rollout that an attempt asks about: shared by the block of seeds, another one every few attempts.

    `tasks` are those that the question knows; UnclearError if the seed's split has none of them. `num_steps` as in
    `rollout`.
    """
    known = [task for task in tasks_of(seed) if task in tasks]
    give_up_if(not known)
    number = (attempt // ATTEMPTS_PER_ROLLOUT) % ROLLOUTS_PER_BLOCK
    scene_seed = seed // SEEDS_PER_BLOCK * ROLLOUTS_PER_BLOCK + number
    order = np.random.default_rng([scene_seed, 78]).permutation(len(tasks_of(seed)))
    task = next(tasks_of(seed)[i] for i in order if tasks_of(seed)[i] in known)
    return rollout(task, "randomized" if knobs.varied else "clean", scene_seed, clumsy, num_steps)


class Moment:
    """One state of a rollout: its image, and what of it the camera sees. The environment is loaded when it is made."""

    def __init__(self, run: Rollout, time: int, knobs: Knobs) -> None:
        self.run, self.time, self.knobs = run, time, knobs
        self.env = environment(run.task, run.variant)
        self.env.load(run.snapshots[time])
        self.camera = Camera.of(self.env.world.model, self.env.world.data, CAMERA)

    @property
    def image(self) -> np.ndarray:
        """uint8 [image_size, image_size, 3]."""
        return self.env.render_camera(CAMERA, self.knobs.image_size, self.knobs.image_size)

    @cached_property
    def segments(self) -> np.ndarray:
        """Geom id of every pixel, int32 [M, M]."""
        side = max(SEGMENT_SIZE, self.knobs.image_size)
        return self.env.segment_camera(CAMERA, side, side)

    def mask(self, body: str) -> np.ndarray:
        """Visible pixels of a body, bool [M, M]."""
        model = self.env.world.model
        return pixels_of(np.flatnonzero(model.geom_bodyid == model.body(body).id), self.segments)

    def shows(self, body: str) -> bool:
        """Whether enough of a body is visible to ask about it: `MIN_SHARE` of the image."""
        return float(self.mask(body).mean()) >= MIN_SHARE

    def pixel(self, position: np.ndarray) -> list[int]:
        """Where a world position is in the image, 0..1000."""
        return integers(self.camera.project(position))
