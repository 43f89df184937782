"""Who shows the better continuation of a failure: the scripted expert, a teacher policy, recorded corrections."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.rollout import NO_MEMORY, Act, Looking, Memory
from envs.types import BimanualEnv, ExpertUnavailableError

Place = tuple[str, str, int, int]
"""Task, variant, environment seed and control step from which a correction was recorded."""
CORRECTION_KEYS = 100_000
"""Numbers of decisions that a teacher uses: its noise is addressed beyond those of episodes."""


@dataclass(frozen=True)
class Corrector:
    """A source of corrections. One that reaches success makes a pair; any other is forgotten."""

    name: str
    commands: Callable[[BimanualEnv, int, np.ndarray], Iterator[np.ndarray]]
    """(environment, its seed, frames before as far as `memory` reaches [M, 3, S, S, 3]) -> `ee` commands [16] from its
    present state on; each is asked for when the one before it was run. It ends where the corrector is out of ideas."""
    starts: Callable[[BimanualEnv, int], Sequence[int]] | None = None
    """(environment, its seed) -> control steps from which it can act; None: from any."""
    memory: Memory = NO_MEMORY
    """What it wants to have seen before it takes over."""


def _expert_commands(env: BimanualEnv, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
    with contextlib.suppress(ExpertUnavailableError):
        while True:
            yield env.expert_action()


scripted_expert = Corrector("scripted_expert", _expert_commands)


def teacher(name: str, act: Act, execute: int, memory: Memory = NO_MEMORY) -> Corrector:
    """Another policy; it runs `execute` commands of each of its chunks."""

    def commands(env: BimanualEnv, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
        looking = Looking(env, execute, memory, before)
        while True:
            chunk = act([looking.decision(seed, CORRECTION_KEYS + env.step_count)])[0]
            for command in chunk[:execute]:
                yield command
                looking.stepped()

    return Corrector(name, commands, memory=memory)


def recorded(name: str, corrections: Mapping[Place, np.ndarray]) -> Corrector:
    """Commands [T, 16] that were recorded from the same states of the same episodes."""

    def commands(env: BimanualEnv, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
        yield from corrections[env.task, env.variant, seed, env.step_count]

    def starts(env: BimanualEnv, seed: int) -> Sequence[int]:
        return [place[3] for place in corrections if place[:3] == (env.task, env.variant, seed)]

    return Corrector(name, commands, starts)
