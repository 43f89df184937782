"""Several chunks from one state: a policy's episode is run, then some of its states are restored and left N times.

What a reward of chunks ranks. As in collection (`envs.rollback`) the simulator is restored bit for bit, so all chunks
of a state are run from the same one, and the policy is asked by `Decision`s that address its noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.rollout import Decision, Rollout, finished
from envs.types import BimanualEnv, Candidates, camera_images

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


def _episode(env: BimanualEnv, seed: int, execute: int) -> Generator[Decision, np.ndarray, list[bytes]]:
    """One episode of the policy; snapshots of the states in which it decided."""
    env.reset(seed=seed)
    snapshots: list[bytes] = []
    while not finished(env):
        snapshots.append(env.save())
        chunk = yield Decision(env.observe(), (seed, len(snapshots) - 1))
        for action in chunk[:execute]:
            env.advance(action)
            if finished(env):
                break
    return snapshots


def _branch(
    env: BimanualEnv, snapshot: bytes, seed: int, first_key: int, config: BranchConfig
) -> Generator[Decision, np.ndarray, _Branch]:
    """One chunk from a state, run to its end, and the decisions behind it."""
    env.load(snapshot)
    observation = env.observe()
    chunk = yield Decision(observation, (seed, first_key))
    poses, images = [env.ee_pose()], [camera_images(observation)]
    for place, action in enumerate(chunk, start=1):
        env.advance(action)
        poses.append(env.ee_pose())
        if place < len(chunk):
            images.append(camera_images(env.observe()))
    for number in range(1, config.decisions + 1):
        if finished(env):
            break
        following = yield Decision(env.observe(), (seed, first_key + number))
        for action in following[: config.execute]:
            env.advance(action)
    after = camera_images(env.observe())
    progress = 1.0 if env.success else env.diagnose().progress
    return _Branch(np.stack(poses), chunk.copy(), np.stack(images), after, progress, env.success)


def _expert(env: BimanualEnv, snapshot: bytes, steps: int) -> np.ndarray:
    """What the scripted expert would command from a state on, [steps, 16]."""
    env.load(snapshot)
    actions = []
    for _ in range(steps):
        actions.append(np.asarray(env.expert_action(), dtype=np.float64))
        env.advance(actions[-1])
    return np.stack(actions)


def branched_rollout(
    env: BimanualEnv, seed: int, *, config: BranchConfig, generator: np.random.Generator, weight_version: int = 0
) -> Rollout[list[Candidates]]:
    """One episode of the policy, then `samples` chunks from each of `states` of its states, drawn at random."""
    snapshots = yield from _episode(env, seed, config.execute)
    drawn = generator.choice(len(snapshots), min(config.states, len(snapshots)), replace=False)
    found = []
    for place in sorted(drawn.tolist()):
        snapshot, branches = snapshots[place], []
        for number in range(config.samples):
            key = BRANCH_KEYS * (1 + place * config.samples + number)
            branches.append((yield from _branch(env, snapshot, seed, key, config)))
        expert = _expert(env, snapshot, len(branches[0].actions))
        stacked: dict[str, Any] = {
            name: np.stack([getattr(one, name) for one in branches]) for name in vars(branches[0])
        }
        env.load(snapshot)
        labels: dict[str, Any] = {
            "task": env.task,
            "variant": env.variant,
            "seed": seed,
            "instruction": env.instruction,
        }
        found.append(
            Candidates(
                **labels,
                step=env.step_count,
                start_digest=hashlib.sha256(snapshot).hexdigest(),
                weight_version=weight_version,
                expert=expert,
                **stacked,
            )
        )
    return found
