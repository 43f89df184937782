"""Several chunks from one state: a policy's episode is run, then some of its states are restored and left N times.

What a reward of chunks ranks. As in collection (`envs.rollback`) the simulator is restored bit for bit, so all chunks
of a state are run from the same one, and the policy is asked by `Decision`s that address its noise.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.rollout import NO_MEMORY, Decision, Looking, Memory, Rollout, finished
from envs.types import (
    NO_FRAMES,
    Candidates,
    ControlledEnv,
    ExpertUnavailableError,
    camera_images,
    said_simulation,
)

BRANCH_KEYS = 1000
"""Numbers of decisions that a branch may use: its noise is addressed beyond those of the episode itself."""


@dataclass(frozen=True)
class BranchConfig:
    """How many chunks of how many states; steps are control steps."""

    execute: int
    """Commands of each chunk that are run before the next decision, in the episode and behind the ranked chunk."""
    states: int = 1
    """States of each episode."""
    samples: int = 4
    """Chunks N of each state."""
    decisions: int = 2
    """Decisions of the policy that follow the ranked chunk before its outcome is looked at."""


@dataclass
class _Branch:
    poses: np.ndarray
    actions: np.ndarray
    images: np.ndarray
    after: np.ndarray
    progress: float
    success: bool


@dataclass
class _State:
    """A state in which the policy decided."""

    step: int
    snapshot: bytes
    before: np.ndarray
    """Frames of the steps before it, uint8 [M, V, S, S, 3], as far as the memory reaches."""


def _episode(
    env: ControlledEnv, seed: int, execute: int, memory: Memory
) -> Generator[Decision, np.ndarray, list[_State]]:
    """One episode of the policy; the states in which it decided."""
    env.reset(seed=seed)
    states, frames = list[_State](), list[np.ndarray]()
    while not finished(env):
        before = np.stack(frames[-memory.reach :]) if frames else NO_FRAMES
        states.append(_State(env.step_count, env.save(), before))
        chunk = yield Looking(env, execute, memory, before).decision(seed, len(states) - 1)
        for action in chunk[:execute]:
            if memory.reach:
                frames.append(camera_images(env.observe()))
            env.advance(action)
            if finished(env):
                break
    return states


def _branch(
    env: ControlledEnv, state: _State, seed: int, first_key: int, config: BranchConfig, memory: Memory
) -> Generator[Decision, np.ndarray, _Branch]:
    """One chunk from a state, run to its end, and the decisions behind it."""
    env.load(state.snapshot)
    looking = Looking(env, config.execute, memory, state.before)
    decision = looking.decision(seed, first_key)
    chunk = yield decision
    poses, images = [env.state()], [camera_images(decision.observation)]
    for place, action in enumerate(chunk, start=1):
        env.advance(action)
        poses.append(env.state())
        if place < len(chunk):
            images.append(camera_images(env.observe()))
    looking = Looking(env, config.execute, memory, [*state.before, *images])
    for number in range(1, config.decisions + 1):
        if finished(env):
            break
        following = yield looking.decision(seed, first_key + number)
        for action in following[: config.execute]:
            env.advance(action)
            looking.stepped()
    after = camera_images(env.observe())
    progress = 1.0 if env.success else env.diagnose().progress
    return _Branch(np.stack(poses), chunk.copy(), np.stack(images), after, progress, env.success)


def _expert(env: ControlledEnv, snapshot: bytes, steps: int) -> np.ndarray | None:
    """What the scripted expert would command from a state on, [steps, A]; None where it cannot go on."""
    env.load(snapshot)
    actions = []
    with contextlib.suppress(ExpertUnavailableError):
        for _ in range(steps):
            actions.append(np.asarray(env.expert_action(), dtype=np.float64))
            env.advance(actions[-1])
        return np.stack(actions)
    return None


def branched_rollout(
    env: ControlledEnv,
    seed: int,
    *,
    config: BranchConfig,
    generator: np.random.Generator,
    memory: Memory = NO_MEMORY,
    weight_version: int = 0,
) -> Rollout[list[Candidates]]:
    """One episode of the policy, then `samples` chunks from each of `states` of its states, drawn at random; those in
    which the expert cannot go on, with which chunks are compared, are left out."""
    states = yield from _episode(env, seed, config.execute, memory)
    drawn = generator.choice(len(states), min(config.states, len(states)), replace=False)
    found = []
    for place in sorted(drawn.tolist()):
        state, branches = states[place], list[_Branch]()
        for number in range(config.samples):
            key = BRANCH_KEYS * (1 + place * config.samples + number)
            branches.append((yield from _branch(env, state, seed, key, config, memory)))
        expert = _expert(env, state.snapshot, len(branches[0].actions))
        if expert is None:
            continue
        stacked: dict[str, Any] = {
            name: np.stack([getattr(one, name) for one in branches]) for name in vars(branches[0])
        }
        labels: dict[str, Any] = {
            "task": env.task,
            "variant": env.variant,
            "seed": seed,
            "instruction": env.instruction,
            "control_hz": env.control_hz,
            "simulation": said_simulation(env),
            "layout": env.layout,
        }
        found.append(
            Candidates(
                **labels,
                step=state.step,
                start_digest=hashlib.sha256(state.snapshot).hexdigest(),
                weight_version=weight_version,
                expert=expert,
                before=state.before if memory.reach else None,
                **stacked,
            )
        )
    return found
