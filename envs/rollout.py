"""Episodes as generators: a rollout yields what it wants a policy to decide and is sent the action chunk.

Many rollouts are then driven together with one batched policy call a round (`run_lockstep`), in any process, with
results that depend only on which rollouts share a batch, never on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from envs.types import BimanualEnv, Episode, Observation, camera_images

Result = TypeVar("Result")


@dataclass(frozen=True)
class Memory:
    """The frames that a policy sees when it decides: the present one and earlier ones, evenly spaced."""

    frames: int = 1
    """K, with the present one."""
    interval: int = 1
    """Control steps between two of them."""

    def is_needed(self, step: int, execute: int) -> bool:
        """Whether a policy that decides at steps 0, `execute`, 2 `execute`, ... looks at this step, then or later."""
        return any((step + back * self.interval) % execute == 0 for back in range(self.frames))


NO_MEMORY = Memory()


class SeenFrames:
    """The frames of one episode that its policy will look back at."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._images: dict[int, np.ndarray] = {}

    def add(self, step: int, images: np.ndarray) -> None:
        """Keep the views of a step, uint8 [3, S, S, 3]; what no later decision looks at is dropped."""
        oldest = step - (self.memory.frames - 1) * self.memory.interval
        self._images = {seen: kept for seen, kept in self._images.items() if seen >= oldest} | {step: images}

    def before(self, step: int) -> np.ndarray | None:
        """Earlier frames of a decision at a step that was added, uint8 [K - 1, 3, S, S, 3], the oldest first.

        Zero before the episode began, as released; None for a policy without memory.
        """
        if self.memory.frames == 1:
            return None
        black = np.zeros_like(self._images[step])
        steps = [step - back * self.memory.interval for back in range(self.memory.frames - 1, 0, -1)]
        return np.stack([self._images[seen] if seen >= 0 else black for seen in steps])


@dataclass(frozen=True)
class Decision:
    """A request for one action chunk."""

    observation: Observation
    key: tuple[int, int]
    """(environment seed, number of the decision in its episode): addresses the policy's noise."""
    past: np.ndarray | None = None
    """Earlier frames, uint8 [K - 1, 3, S, S, 3], the oldest first; None for a policy without memory."""


Rollout = Generator[Decision, np.ndarray, Result]
Act = Callable[[Sequence[Decision]], np.ndarray]
"""Chunks of absolute `ee` commands, [len(decisions), H, 16]."""


def run_lockstep(rollouts: Sequence[Rollout[Result]], act: Act) -> list[Result]:
    """Run all rollouts to their end, asking `act` once a round for every one that waits; results in the given order."""
    results: list[Result | None] = [None] * len(rollouts)
    waiting: dict[int, Decision] = {}

    def resume(index: int, chunk: np.ndarray | None) -> None:
        try:
            waiting[index] = next(rollouts[index]) if chunk is None else rollouts[index].send(chunk)
        except StopIteration as stop:
            results[index] = stop.value

    for index in range(len(rollouts)):
        resume(index, None)
    while waiting:
        asking, waiting = waiting, {}
        chunks = act(list(asking.values()))
        for index, chunk in zip(asking, chunks, strict=True):
            resume(index, chunk)
    return results  # type: ignore[return-value]


class EpisodeRecorder:
    """Collects the arrays of an `Episode` while an environment is stepped."""

    def __init__(self, env: BimanualEnv) -> None:
        self.env = env
        self.poses = [env.ee_pose()]
        self.actions: list[np.ndarray] = []
        self.frame_steps: list[int] = []
        self.images: list[np.ndarray] = []
        self.truth: list[np.ndarray] = []
        self.stage = 0
        self.failure: str | None = None

    def frame(self, observation: Observation) -> None:
        """Record the images and the ground truth of the current state."""
        self.frame_steps.append(self.env.step_count)
        self.images.append(camera_images(observation))
        self.truth.append(self.env.truth())

    def advance(self, action: np.ndarray, label: np.ndarray | None = None) -> None:
        """Step the environment with `action`; record `label` (default: the action itself)."""
        self.env.advance(action)
        self.actions.append(action if label is None else label)
        self.poses.append(self.env.ee_pose())
        diagnosis = self.env.diagnose()
        self.stage = max(self.stage, diagnosis.stage)
        self.failure = self.failure or diagnosis.failure

    def episode(self, seed: int, weight_version: int) -> Episode:
        """The finished record."""
        env = self.env
        return Episode(
            task=env.task,
            variant=env.variant,
            seed=seed,
            instruction=env.instruction,
            success=env.success,
            num_steps=env.step_count,
            poses=np.stack(self.poses),
            actions=np.stack(self.actions),
            frame_steps=np.asarray(self.frame_steps, dtype=np.int64),
            images=np.stack(self.images),
            stage=self.stage,
            failure=None if env.success else self.failure or "timeout",
            weight_version=weight_version,
            truth=np.stack(self.truth).astype(np.float32) if self.truth[0].size else None,
        )


def finished(env: BimanualEnv) -> bool:
    """Whether the episode is over: success, or no control steps left."""
    return env.success or env.step_count >= env.step_limit


def policy_rollout(
    env: BimanualEnv,
    seed: int,
    *,
    execute: int,
    memory: Memory = NO_MEMORY,
    weight_version: int = 0,
    on_step: Callable[[BimanualEnv], None] | None = None,
    record_end: bool = False,
) -> Rollout[Episode]:
    """One episode of a policy that executes the first `execute` commands of each chunk.

    Rendered are the steps at which it decides or to which its memory looks back, with `record_end` also the state in
    which the episode ends; `on_step` (a video recorder) sees the environment after every control step.
    """
    observation, _ = env.reset(seed=seed)
    recorder, seen = EpisodeRecorder(env), SeenFrames(memory)
    for number in range(env.step_limit):
        if number:
            observation = env.observe()
        recorder.frame(observation)
        seen.add(env.step_count, camera_images(observation))
        chunk = yield Decision(observation, (seed, number), seen.before(env.step_count))
        for taken, action in enumerate(chunk[:execute], start=1):
            recorder.advance(action)
            if on_step is not None:
                on_step(env)
            if finished(env):
                if record_end:
                    recorder.frame(env.observe())
                return recorder.episode(seed, weight_version)
            if taken < execute and memory.is_needed(env.step_count, execute):
                seen.add(env.step_count, camera_images(env.observe()))
    raise AssertionError("an episode outlived its step limit")


def demonstrate(env: BimanualEnv, seed: int, *, noise_m: float, generator: np.random.Generator) -> Episode:
    """One episode of the scripted expert with a frame at every step.

    The executed positions carry Gaussian noise of `noise_m` (metres, per axis and arm), so that the data covers states
    beside the expert's path; the recorded labels are the expert's own commands.
    """
    observation, _ = env.reset(seed=seed)
    recorder = EpisodeRecorder(env)
    while True:
        recorder.frame(observation)
        label = env.expert_action()
        action = label.copy()
        action.reshape(2, 8)[:, :3] += generator.normal(scale=noise_m, size=(2, 3)) if noise_m > 0 else 0.0
        recorder.advance(action, label)
        if finished(env):
            return recorder.episode(seed, weight_version=0)
        observation = env.observe()
