"""Intervention, rollback and correction in a simulator: failures become preference pairs.

FlowPRO (arXiv:2606.14409, section 4.2) lets an operator stop the policy, rewind the robot by a chosen time and take
over. Here a detector on simulator truth stops it in the step in which the failure shows, the simulator itself is
restored, and a corrector (scripted expert, teacher policy, recorded corrections of a human) shows the better
continuation; it must reach success before the pair counts. The winner is the whole correction: with shorter ones, what
follows the mended step was forgotten (docs/results.md).
Differs from the paper: the rollback delta is drawn at random instead of chosen by an operator, and counted from the
event (the irreversible one, else the last progress), because a detector sees a failure later than an operator.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from pydantic import model_validator

from envs.by_name import OwnName, load
from envs.execution import Execution, LateExecutor
from envs.options import ControlSteps, Fraction, Rounds
from envs.own_corrections import own_commands, own_detector
from envs.rollout import NO_MEMORY, Act, Looking, Memory, Rollout, finished, with_noise
from envs.types import (
    NO_FRAMES,
    SOME_PROGRESS,
    ControlledEnv,
    Diagnosis,
    ExpertUnavailableError,
    PreferencePair,
    Segment,
    SimulatorError,
    camera_images,
    said_simulation,
    stacked_truth,
)

Place = tuple[str, str, int, int]
"""Task, variant, environment seed and control step from which a correction was recorded."""

CORRECTION_KEYS = 100_000
"""Numbers of decisions that a teacher uses: its noise is addressed beyond those of episodes."""


@dataclass(frozen=True)
class Corrector:
    """A source of corrections. One that reaches success makes a pair; any other is forgotten."""

    name: str
    commands: Callable[[ControlledEnv, int, np.ndarray], Iterator[np.ndarray]]
    """(environment, its seed, frames before as far as `memory` reaches [M, 3, S, S, 3]) -> `ee` commands [16] from its
    present state on; each is asked for when the one before it was run. It ends where the corrector is out of ideas."""
    starts: Callable[[ControlledEnv, int], Sequence[int]] | None = None
    """(environment, its seed) -> control steps from which it can act; None: from any."""
    memory: Memory = NO_MEMORY
    """What it wants to have seen before it takes over."""


def own_corrector(code: str) -> Corrector:
    """A user's own by its name: a `Corrector`, or a function that is its `commands`. OwnCodeError for another."""
    found = load(code)
    return found if isinstance(found, Corrector) else Corrector(f"own {code.rpartition(':')[2]}", own_commands(code))


def _expert_commands(env: ControlledEnv, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
    with contextlib.suppress(ExpertUnavailableError):
        while True:
            yield env.expert_action()


scripted_expert = Corrector("scripted_expert", _expert_commands)


def noisy_expert(noise_m: float) -> Corrector:
    """The scripted expert with a hand that shakes: Gaussian noise, metres, on its positions, recorded as well."""

    def commands(env: ControlledEnv, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([seed, env.step_count])
        for command in _expert_commands(env, seed, before):
            yield with_noise(command, noise_m, generator)

    return Corrector(f"scripted_expert, noise of {1000 * noise_m:g} mm", commands)


def teacher(name: str, act: Act, execute: int, memory: Memory = NO_MEMORY) -> Corrector:
    """Another policy; it runs `execute` commands of each of its chunks."""

    def commands(env: ControlledEnv, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
        looking = Looking(env, execute, memory, before)
        while True:
            chunk = act([looking.decision(seed, CORRECTION_KEYS + env.step_count)])[0]
            for command in chunk[:execute]:
                yield command
                looking.stepped()

    return Corrector(name, commands, memory=memory)


def recorded(name: str, corrections: Mapping[Place, np.ndarray]) -> Corrector:
    """Commands [T, 16] that were recorded from the same states of the same episodes."""

    def commands(env: ControlledEnv, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
        yield from corrections[env.task, env.variant, seed, env.step_count]

    def starts(env: ControlledEnv, seed: int) -> Sequence[int]:
        return [place[3] for place in corrections if place[:3] == (env.task, env.variant, seed)]

    return Corrector(name, commands, starts)


MEASURED_STEPS = 8
"""Steps of the loser that are run again, twice, from the shared start to measure how exactly it was restored."""

RESTORE_TOLERANCE = 1e-3
"""A pair whose segments do not share their start this well (m, parts of quaternions) is none."""


class RollbackConfig(Execution):
    """How chunks are executed, and how failures are found and taken back; steps are control steps."""

    rollback_steps: tuple[ControlSteps, ControlSteps] = (12, 32)
    """The shared start lies so many steps before the failure's event, drawn uniformly from this range."""
    further_rollback: ControlSteps = 12
    """Roll back this much more after each correction that fails."""
    max_corrections: Rounds = 4
    """Corrections tried for one failure before it is dropped as uncorrectable, and counted."""
    kept_after_event: ControlSteps = 8
    """Steps of the failure kept after the last progress, where it is no irreversible event: at least a chunk, so that
    the last good states show what went wrong; later states would be led back to a path that no longer fits."""
    patience: ControlSteps | None = None
    """Steps without progress after which the policy counts as stuck; None: the environment's, see `ControlledEnv`."""
    regress: Fraction = 0.15
    """Loss of progress (of 1) after which the policy counts as deviating."""
    correction_limit: ControlSteps | None = None
    """Steps within which the corrector must succeed; None: the environment's."""
    detector: OwnName | None = None
    """A class of one's own that finds failures, FILE.py:CLASS or MODULE:CLASS, see docs/correctors.md; None: ours."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        low, high = self.rollback_steps
        if low > high:
            raise ValueError(f"rollback_steps is [{low}, {high}]; write the smaller number first")
        return self


@dataclass
class Collection:
    """Pairs of one or more episodes and what they cost."""

    pairs: list[PreferencePair] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """episodes, successes, interventions, policy_steps, corrector_steps, discarded/<reason>."""

    @classmethod
    def merge(cls, collections: Sequence[Collection]) -> Collection:
        """All pairs in order, counts summed."""
        pairs = [pair for collection in collections for pair in collection.pairs]
        return cls(pairs, sum((collection.counts for collection in collections), Counter()))


class Detector(Protocol):
    """Finds failures of one episode. A user's own class is made for each as `CLASS(config, env)`."""

    best_step: int
    """Control step of the last good state: the event of a failure that is not irreversible."""

    def update(self, diagnosis: Diagnosis, step: int) -> str | None:
        """Name of the failure found after control step `step`, or None; begins with step 0, before any."""


def make_detector(config: RollbackConfig, env: ControlledEnv) -> Detector:
    """For an episode that has begun: the user's own, else `FailureDetector`."""
    if config.detector is None:
        return FailureDetector(config, env.patience)
    return own_detector(config.detector, config, env)


class FailureDetector:
    """Says when a policy has failed: an irreversible event, no progress, progress lost, or out of time.

    Where progress is not known, every step counts as progress.
    """

    def __init__(self, config: RollbackConfig, patience: int) -> None:
        """`patience`: the environment's."""
        self.regress, self.patience = config.regress, config.patience or patience
        self.best_progress = -np.inf
        self.best_step = 0
        """Step of the last progress: the event of a failure that is not irreversible."""

    def update(self, diagnosis: Diagnosis, step: int) -> str | None:
        """Name of the failure found after control step `step`, or None."""
        if diagnosis.failure is not None:
            return diagnosis.failure
        if np.isnan(diagnosis.progress):
            self.best_step = step
            return None
        if diagnosis.progress > self.best_progress + SOME_PROGRESS:
            self.best_progress, self.best_step = diagnosis.progress, step
        if diagnosis.progress < self.best_progress - self.regress:
            return "deviating"
        return "no_progress" if step - self.best_step >= self.patience else None


class Trace:
    """Snapshots, poses and commands of the control steps since somebody took over: T steps, T + 1 states."""

    def __init__(self, env: ControlledEnv) -> None:
        self.env = env
        self.first_step = env.step_count
        self.snapshots = [env.save()]
        self.poses = [env.state()]
        self.truth = [env.truth()]
        self.actions: list[np.ndarray] = []

    def advance(self, action: np.ndarray) -> None:
        """One control step."""
        self.env.advance(action)
        pose, snapshot = self.env.state(), self.env.save()
        self.actions.append(np.asarray(action, dtype=np.float64))
        self.poses.append(pose)
        self.truth.append(self.env.truth())
        self.snapshots.append(snapshot)

    def rewind(self, steps: int) -> None:
        """Take the last steps back, all of them if there are fewer."""
        kept = max(0, len(self) - steps)
        del self.actions[kept:], self.poses[kept + 1 :], self.truth[kept + 1 :], self.snapshots[kept + 1 :]
        self.env.load(self.snapshots[-1])

    def __len__(self) -> int:
        return len(self.actions)

    def images(self, start: int, stop: int) -> np.ndarray:
        """Views of the states start..stop-1, uint8 [n, 3, S, S, 3], rendered now: from the snapshots, or on the way
        where loading one means to repeat the episode up to it. The environment is left in the last of them."""
        images = []
        for step in range(start, stop):
            if step == start or self.env.restore_method == "simulator":
                self.env.load(self.snapshots[step])
            else:
                self.env.advance(self.actions[step - 1])
            images.append(camera_images(self.env.observe()))
        return np.stack(images) if images else NO_FRAMES

    def before(self, start: int, memory: Memory) -> np.ndarray:
        """What a memory reaches of the states before one, uint8 [M, 3, S, S, 3]; see `images`."""
        return self.images(max(0, start - memory.reach), start)

    def segment(self, start: int, stop: int) -> Segment:
        """Steps start..stop-1, with images as `images` renders them."""
        return Segment(
            poses=np.stack(self.poses[start : stop + 1]),
            actions=np.stack(self.actions[start:stop]),
            images=self.images(start, stop),
            truth=stacked_truth(self.truth[start:stop]),
        )


def _correct(env: ControlledEnv, seed: int, corrector: Corrector, before: np.ndarray, limit: int) -> Trace:
    """Let the corrector act from the current state until success, an irreversible event, `limit` steps, its end or an
    error of the simulator.

    `before` is what it has seen of the steps so far.
    """
    trace = Trace(env)
    commands = corrector.commands(env, seed, before)
    with contextlib.suppress(SimulatorError):
        while len(trace) < limit and not env.success and env.diagnose().failure is None:
            command = next(commands, None)
            if command is None:
                break
            trace.advance(command)
    return trace


def _restore_errors(env: ControlledEnv, trace: Trace, start: int) -> tuple[float, float]:
    """How far two continuations of the snapshot at `start` lie apart, and how far the trace itself lies from them.

    Largest differences of the measured poses, by the trace's own next commands. The first is 0 where restored states
    continue bit for bit, the second where they continue like the episode that was saved.
    """
    runs = []
    for _ in range(2):
        env.load(trace.snapshots[start])
        again = Trace(env)
        for action in trace.actions[start : start + MEASURED_STEPS]:
            again.advance(action)
        runs.append(np.stack(again.poses))
    saved = np.stack(trace.poses[start : start + len(runs[0])])
    return float(np.abs(runs[1] - runs[0]).max()), float(np.abs(runs[0] - saved).max())


@dataclass(frozen=True)
class Failure:
    """What ended the policy's turn, in steps of its trace."""

    name: str
    event: int
    """The irreversible event, else the last progress."""
    stop: int
    """End of the loser."""


def _starts(
    env: ControlledEnv,
    seed: int,
    trace: Trace,
    failure: Failure,
    corrector: Corrector,
    config: RollbackConfig,
    delta: int,
) -> Iterator[int]:
    """Steps of the trace from which corrections are tried: `delta` before the event, then further back; or, the latest
    first, those before the event from which this corrector can act."""
    if corrector.starts is not None:
        possible = (step - trace.first_step for step in corrector.starts(env, seed))
        yield from sorted((step for step in possible if 0 <= step <= failure.event), reverse=True)
        return
    for attempt in range(config.max_corrections):
        start = max(0, failure.event - delta - attempt * config.further_rollback)
        yield start
        if start == 0:
            return


def _roll_back(
    env: ControlledEnv,
    seed: int,
    trace: Trace,
    starts: Iterable[int],
    corrector: Corrector,
    limit: int,
    counts: Counter[str],
) -> tuple[int, Trace] | None:
    """First of these steps of the trace from which the corrector succeeds within `limit` steps, with its trace."""
    for start in starts:
        before = trace.before(start, corrector.memory)
        env.load(trace.snapshots[start])
        correction = _correct(env, seed, corrector, before, limit)
        counts["corrector_steps"] += len(correction)
        if env.success:
            return start, correction
    return None


def _make_pair(
    env: ControlledEnv,
    seed: int,
    trace: Trace,
    start: int,
    failure: Failure,
    correction: Trace,
    **labels: Any,
) -> PreferencePair:
    """The pair that starts at step `start` of the policy's trace."""
    return PreferencePair(
        task=env.task,
        variant=env.variant,
        seed=seed,
        instruction=env.instruction,
        winner=correction.segment(0, len(correction)),
        loser=trace.segment(start, failure.stop),
        start_step=trace.first_step + start,
        trigger_step=trace.first_step + len(trace),
        trigger=failure.name,
        rollback_steps=failure.event - start,
        start_digest=hashlib.sha256(trace.snapshots[start]).hexdigest(),
        restore_method=env.restore_method,
        exact_restore=labels["restore_error"] == 0.0,
        control_hz=env.control_hz,
        simulation=said_simulation(env),
        layout=env.layout,
        **labels,
    )


def until_failure(
    env: ControlledEnv, seed: int, config: RollbackConfig, memory: Memory = NO_MEMORY
) -> Rollout[tuple[Trace, Failure | None]]:
    """Begin an episode and let the policy act until success (None) or a failure."""
    env.reset(seed=seed)
    trace, looking = Trace(env), Looking(env, config.period, memory)
    executor = LateExecutor(config, env.layout.numbers == "ee")
    detector = make_detector(config, env)
    detector.update(env.diagnose(), 0)
    while True:
        if executor.asks:
            executor.give((yield looking.decision(seed, executor.decisions, plan=executor.plan)))
        trace.advance(executor.command())
        if env.success:
            return trace, None
        diagnosis = env.diagnose()
        name = detector.update(diagnosis, len(trace)) or ("timeout" if finished(env) else None)
        if name is not None and diagnosis.failure is not None:
            return trace, Failure(name, event=len(trace), stop=len(trace))
        if name is not None:
            stop = min(len(trace), detector.best_step + config.kept_after_event)
            return trace, Failure(name, event=detector.best_step, stop=stop)
        looking.stepped()


def intervened_rollout(
    env: ControlledEnv,
    seed: int,
    *,
    corrector: Corrector,
    config: RollbackConfig,
    generator: np.random.Generator,
    memory: Memory = NO_MEMORY,
    weight_version: int = 0,
) -> Rollout[Collection]:
    """One episode of the policy until it succeeds or fails; a failure is rolled back and corrected.

    Yields `Decision`s like any rollout, with the frames of the policy's `memory`. A failure that cannot be corrected is
    counted and gives no pair.
    """
    result = Collection(counts=Counter(episodes=1))
    trace, failure = yield from until_failure(env, seed, config, memory)
    result.counts["policy_steps"] += len(trace)
    if failure is None:
        result.counts["successes"] += 1
        return result
    result.counts["interventions"] += 1
    delta = int(generator.integers(config.rollback_steps[0], config.rollback_steps[1] + 1))
    starts = _starts(env, seed, trace, failure, corrector, config, delta)
    limit = config.correction_limit or env.correction_limit
    found = _roll_back(env, seed, trace, starts, corrector, limit, result.counts)
    if found is None:
        result.counts[f"discarded/uncorrectable_{failure.name}"] += 1
        return result
    start, correction = found
    error, drift = _restore_errors(env, trace, start)
    if not (error <= RESTORE_TOLERANCE and drift <= RESTORE_TOLERANCE):
        result.counts["discarded/restore_error"] += 1
        return result
    labels = {"corrector": corrector.name, "correction_limit": limit}
    labels |= {"weight_version": weight_version, "restore_error": error}
    before = trace.before(start, memory) if memory.reach else None
    result.pairs.append(_make_pair(env, seed, trace, start, failure, correction, before=before, **labels))
    return result
