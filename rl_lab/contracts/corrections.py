"""The contracts of failure detectors and correctors, held in episodes of the tabletop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np

import envs.tabletop  # noqa: F401 - registers the environments
from envs.by_name import brief
from envs.rollback import Corrector, RollbackConfig, intervened_rollout, make_detector, own_corrector, scripted_expert
from envs.rollout import Decision, run_lockstep
from envs.types import EE_DIM, ControlledEnv, PreferencePair, ee_pose
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import stream

SEEDS = 2
CHUNK = 32


def check_detector(source: str, settings: dict[str, Any]) -> Iterator[str]:
    """What holds of a failure detector; ValueError at the first that does not. `settings`: task, and of `collect`."""
    env, config = _episode(settings, detector=source)
    for seed in range(SEEDS):
        env.reset(seed=seed)
        detector = make_detector(config, env)
        found, step = detector.update(env.diagnose(), 0), 0
        while found is None and not env.success and step < env.step_limit:
            env.advance(env.expert_action())
            step += 1
            found = detector.update(env.diagnose(), step)
            _check_answer(found, getattr(detector, "best_step", None), step)
        yield f"follows an episode of the expert (seed {seed}): {found or 'no failure'} after {step} steps"
    for seed in range(SEEDS):
        yield _pair(env, seed, config, scripted_expert)


def _check_answer(found: Any, best: Any, step: int) -> None:
    if not (found is None or isinstance(found, str)):
        raise ValueError(f"update gave {brief(found)}; it must give the name of a failure, or None")
    if not isinstance(best, int) or not 0 <= best <= step:
        raise ValueError(f"best_step is {best!r} after step {step}; it must be a whole number from 0 to the step")


def check_corrector(source: str, settings: dict[str, Any]) -> Iterator[str]:
    """What holds of a corrector; ValueError at the first that does not. `settings`: task, and of `collect`."""
    env, config = _episode(settings)
    corrector = own_corrector(source)
    yield f"is the corrector {corrector.name!r} on every pair"
    env.reset(seed=0)
    start = env.save()
    runs = []
    for _ in range(2):
        env.load(start)
        runs.append(_commands(env, corrector))
    yield f"gives commands of {EE_DIM} finite numbers that the environment takes: {len(runs[0])} looked at"
    if any(not np.array_equal(first, second) for first, second in zip(*runs, strict=False)):
        raise ValueError("it gives other commands for the same state again, so that no run could be repeated")
    yield "gives the same commands for the same state"
    for seed in range(SEEDS):
        yield _pair(env, seed, config, corrector)


def _commands(env: ControlledEnv, corrector: Corrector) -> list[np.ndarray]:
    """The first of its commands from the present state on, carried out."""
    found: list[np.ndarray] = []
    for command in corrector.commands(env, 0, np.zeros((0,))):
        values = np.asarray(command, dtype=np.float64)
        if values.shape != (EE_DIM,) or not np.isfinite(values).all():
            raise ValueError(f"command {len(found)} is {brief(command, 120)}; it must be {EE_DIM} finite numbers")
        env.advance(values)
        found.append(values)
        if len(found) == CHUNK or env.success:
            break
    return found


def _episode(settings: dict[str, Any], **more: Any) -> tuple[ControlledEnv, RollbackConfig]:
    task = settings.pop("task", "handover_block")
    try:
        config = RollbackConfig.read(settings | more, "collect")
        env = gymnasium.make(f"tabletop/{task}-v0", disable_env_checker=True, image_size=32)
    except (ValueError, gymnasium.error.Error) as error:
        raise UserError(str(error)) from error
    return env.unwrapped, config  # type: ignore[return-value]


def _pair(env: ControlledEnv, seed: int, config: RollbackConfig, corrector: Corrector) -> str:
    """What comes of an episode in which the arms hold still, the simplest failure."""
    options: dict[str, Any] = {"corrector": corrector, "config": config, "generator": stream(0, "check", seed)}
    (found,) = run_lockstep([intervened_rollout(env, seed, **options)], _still)
    pairs: list[PreferencePair] = found.pairs
    outcome = f"a pair: {pairs[0].trigger}, rolled back {pairs[0].rollback_steps} steps" if pairs else "no pair"
    counts = ", ".join(f"{key} {number}" for key, number in sorted(found.counts.items()))
    return f"of arms that hold still (seed {seed}) comes {outcome} ({counts})"


def _still(decisions: Sequence[Decision]) -> np.ndarray:
    """Chunks that command where the arms are."""
    return np.stack([np.repeat(ee_pose(decision.observation)[None], CHUNK, axis=0) for decision in decisions])
