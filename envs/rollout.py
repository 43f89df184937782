"""Episodes as generators: a rollout yields what it wants a policy to decide and is sent the action chunk.

Many rollouts are then driven together with one batched policy call a round (`run_lockstep`), in any process, with
results that depend only on which rollouts share a batch, never on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from envs.execution import Execution, LateExecutor, Plan, jerk
from envs.se3 import split_arms
from envs.types import (
    SIMULATOR_ERROR,
    ControlledEnv,
    Diagnosis,
    Episode,
    Observation,
    SimulatorError,
    camera_images,
    said_simulation,
    stacked_truth,
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Memory:
    """The frames that a policy sees when it decides: the present one and earlier ones, evenly spaced."""

    frames: int = 1
    """K, with the present one."""
    interval: int = 1
    """Control steps between two of them."""

    @property
    def reach(self) -> int:
        """Control steps between the oldest frame and the present one."""
        return (self.frames - 1) * self.interval

    def is_needed(self, step: int, period: int) -> bool:
        """Whether a policy that decides at steps 0, `period`, 2 `period`, ... looks at this step, then or later."""
        return any((step + back * self.interval) % period == 0 for back in range(self.frames))


NO_MEMORY = Memory()


@dataclass(frozen=True)
class Decision:
    """A request for one action chunk."""

    observation: Observation
    key: tuple[int, ...]
    """(environment seed, number of the decision in its episode): addresses the policy's noise; of several episodes from
    one seed also which it is."""
    past: np.ndarray | None = None
    """Earlier frames, uint8 [K - 1, V, S, S, 3], the oldest first; None for a policy without memory."""
    truth: np.ndarray | None = None
    """The simulator's, float32 [n], for policies of studies, which read it in place of images; None where there is no
    simulator."""
    plan: Plan | None = None
    """What the robot does meanwhile, for a policy that is to go on from there; None: it may decide freely."""


Rollout = Generator[Decision, np.ndarray, Result]
Act = Callable[[Sequence[Decision]], np.ndarray]
"""Chunks of commands, [len(decisions), H, A]."""


class Looking:
    """What a policy sees of an environment that it acts in: the present frame and those that its memory keeps.

    It decides at the present step of the environment and every `period` steps from there.
    """

    def __init__(
        self,
        env: ControlledEnv,
        period: int,
        memory: Memory = NO_MEMORY,
        before: Sequence[np.ndarray] | np.ndarray = (),
    ) -> None:
        """`before` holds the frames of the last steps before this one, uint8 [V, S, S, 3] each, the oldest first."""
        self.env, self.period, self.memory = env, period, memory
        self.first_step = env.step_count
        oldest = self.first_step - len(before)
        self._images = {oldest + place: frame for place, frame in enumerate(before)}

    def decision(
        self, seed: int, number: int, observation: Observation | None = None, plan: Plan | None = None
    ) -> Decision:
        """The request for a chunk in the present state, which is observed unless the observation is given."""
        observation = self.env.observe() if observation is None else observation
        truth = self.env.truth()
        if self.memory.frames == 1:
            return Decision(observation, (seed, number), truth=truth, plan=plan)
        step = self.env.step_count
        self._add(camera_images(observation))
        black = np.zeros_like(self._images[step])
        steps = range(step - self.memory.reach, step, self.memory.interval)
        # Black before the episode began, as released; a frame that is missing later is an error.
        past = [self._images[seen] if seen >= 0 else black for seen in steps]
        return Decision(observation, (seed, number), np.stack(past), truth, plan)

    def stepped(self) -> None:
        """To be called after every control step between two decisions: keeps the frame if a decision will look back."""
        taken = self.env.step_count - self.first_step
        if taken % self.period and self.memory.is_needed(taken, self.period):
            self._add(camera_images(self.env.observe()))

    def _add(self, images: np.ndarray) -> None:
        """Keep the present frame, and drop what no later decision looks at."""
        step = self.env.step_count
        kept = {seen: frame for seen, frame in self._images.items() if seen >= step - self.memory.reach}
        self._images = kept | {step: images}


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


def as_member(rollout: Rollout[Result], number: int) -> Rollout[Result]:
    """The same with noise of its own, where several start from one seed."""
    decision = next(rollout)
    while True:
        chunk = yield replace(decision, key=(*decision.key, number))
        try:
            decision = rollout.send(chunk)
        except StopIteration as stop:
            return stop.value


class EpisodeRecorder:
    """Collects the arrays of an `Episode` while an environment is stepped."""

    def __init__(self, env: ControlledEnv) -> None:
        self.env = env
        self.poses = [env.state()]
        self.actions: list[np.ndarray] = []
        self.frame_steps: list[int] = []
        self.images: list[np.ndarray] = []
        self.truth: list[np.ndarray] = []
        self.stage = 0
        self.failure: str | None = None
        self.error: str | None = None
        """Of the simulator, which ended the episode."""

    def frame(self, observation: Observation) -> None:
        """Record the images and the ground truth of the current state."""
        truth = self.env.truth()
        self.frame_steps.append(self.env.step_count)
        self.images.append(camera_images(observation))
        self.truth.append(truth)

    def advance(self, action: np.ndarray, label: np.ndarray | None = None) -> None:
        """Step the environment with `action`; record `label` (default: the action itself)."""
        self.env.advance(action)
        pose = self.env.state()
        self.actions.append(action if label is None else label)
        self.poses.append(pose)
        diagnosis = self.env.diagnose()
        self.stage = max(self.stage, diagnosis.stage)
        self.failure = self.failure or diagnosis.failure

    def fail(self, error: SimulatorError) -> None:
        """The simulator has ended the episode where it is."""
        self.failure, self.error = SIMULATOR_ERROR, error.line

    def episode(self, seed: int, weight_version: int) -> Episode:
        """The finished record."""
        env = self.env
        about = {"control_hz": env.control_hz, "simulation": said_simulation(env), "error": self.error}
        return Episode(
            task=env.task,
            variant=env.variant,
            seed=seed,
            instruction=env.instruction,
            success=env.success,
            num_steps=len(self.actions),
            poses=np.stack(self.poses),
            actions=np.stack(self.actions) if self.actions else np.zeros((0, env.layout.action_dim)),
            frame_steps=np.asarray(self.frame_steps, dtype=np.int64),
            images=np.stack(self.images),
            stage=self.stage,
            failure=None if env.success else self.failure or "timeout",
            weight_version=weight_version,
            layout=env.layout,
            truth=stacked_truth(self.truth),
            extra={name: value for name, value in about.items() if value is not None},
        )


def finished(env: ControlledEnv) -> bool:
    """Whether the episode is over: success, or no control steps left."""
    return env.success or env.step_count >= env.step_limit


def policy_rollout(
    env: ControlledEnv,
    seed: int,
    *,
    execution: Execution,
    memory: Memory = NO_MEMORY,
    weight_version: int = 0,
    on_step: Callable[[ControlledEnv], None] | None = None,
    record_end: bool = False,
) -> Rollout[Episode]:
    """One episode of a policy whose chunks are executed as `execution` says.

    Rendered are the steps at which it decides or to which its memory looks back, with `record_end` also the state in
    which the episode ends; `on_step` (a video recorder) sees the environment after every control step. An error of the
    simulator is a failure of the episode, with its line in `extra`.
    """
    observation, _ = env.reset(seed=seed)
    recorder, looking = EpisodeRecorder(env), Looking(env, execution.period, memory)
    executor = LateExecutor(execution, env.layout.numbers == "ee")
    try:
        yield from _until_end(seed, observation, recorder, looking, executor, on_step)
        if record_end:
            recorder.frame(env.observe())
    except SimulatorError as error:
        recorder.fail(error)
    episode = recorder.episode(seed, weight_version)
    if execution.latency:
        episode.extra["stalled_steps"] = executor.stalls
    if executor.poses and env.control_hz is not None:
        episode.extra["jerk"] = jerk(episode.poses, env.control_hz)
    return episode


def _until_end(
    seed: int,
    observation: Observation,
    recorder: EpisodeRecorder,
    looking: Looking,
    executor: LateExecutor,
    on_step: Callable[[ControlledEnv], None] | None,
) -> Rollout[None]:
    env = recorder.env
    while True:
        if executor.asks:
            number = executor.decisions
            decision = looking.decision(seed, number, None if number else observation, executor.plan)
            recorder.frame(decision.observation)
            executor.give((yield decision))
        recorder.advance(executor.command())
        if on_step is not None:
            on_step(env)
        if finished(env):
            return
        looking.stepped()


def with_noise(command: np.ndarray, noise_m: float, generator: np.random.Generator) -> np.ndarray:
    """An `ee` command with Gaussian noise on its positions, metres, of each axis and arm."""
    noisy = command.copy()
    if noise_m > 0:
        positions = split_arms(noisy)[:, :3]
        positions += generator.normal(scale=noise_m, size=positions.shape)
    return noisy


def demonstrate(
    env: ControlledEnv,
    seed: int,
    *,
    noise_m: float,
    generator: np.random.Generator,
    detect: Callable[[Diagnosis, int], str | None] | None = None,
) -> Episode:
    """One episode of the scripted expert with a frame at every step, which also ends where `detect` names a failure.

    The executed commands are `with_noise`, so that the data covers states beside the expert's path; the recorded labels
    are the expert's own commands.
    """
    observation, _ = env.reset(seed=seed)
    recorder = EpisodeRecorder(env)
    while True:
        recorder.frame(observation)
        label = env.expert_action()
        recorder.advance(with_noise(label, noise_m, generator), label)
        failure = None if detect is None else detect(env.diagnose(), env.step_count)
        recorder.failure = recorder.failure or failure
        if finished(env) or failure is not None:
            return recorder.episode(seed, weight_version=0)
        observation = env.observe()
