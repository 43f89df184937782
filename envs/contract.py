"""What the lab asks of a declared environment, tried on it: one line each, with what was measured.

`check_environment` is what `python -m rl_lab.check environment` calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from envs.commands import CommandError, check_commands
from envs.declared import DeclarationError, DeclaredEnv
from envs.types import ExpertUnavailableError, camera_images

MEASURED_STEPS = 8
"""Control steps by which continuations of one state are compared."""

EXPERT_SEEDS = range(5)

LARGEST = 1e3
"""Ends of the Box are taken to lie within."""


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    level: Literal["ok", "warning", "error"]
    text: str


def check_environment(env: DeclaredEnv) -> Iterator[Finding]:
    """Everything about one task and variant, in the order in which a run needs it; it ends with the first error."""
    try:
        for part in (_numbers, _pictures, _repeats, _restores, _expert):
            yield from part(env)
    except DeclarationError as error:
        yield Finding("error", str(error))


def _numbers(env: DeclaredEnv) -> Iterator[Finding]:
    layout = env.layout
    env.reset(seed=0)
    commands, last = _commands(env), env.state()
    if layout.numbers == "ee":
        try:
            check_commands(last, unit=True, layout=layout)
        except CommandError as error:
            raise DeclarationError(f"numbers are ee, but the state is no pose: {error}") from error
    started = time.perf_counter()
    sizes = {len(state) for state in _run(env, commands)}
    seconds = (time.perf_counter() - started) / len(commands)
    progress = env.diagnose().progress
    if not (np.isnan(progress) or 0 <= progress <= 1):
        raise DeclarationError(f"progress is {progress:g}; expected 0 to 1")
    if len(sizes) > 1:
        raise DeclarationError(f"states of one episode have {' and '.join(map(str, sorted(sizes)))} numbers")
    sizes_text = f"commands of {layout.action_dim}, states of {layout.state_dim} numbers ({layout.numbers})"
    yield Finding("ok", f"{sizes_text}, {env.control_hz:g} Hz, {1000 * seconds:.1f} ms a step")


def _pictures(env: DeclaredEnv) -> Iterator[Finding]:
    started = time.perf_counter()
    views = env.observe()["observation"]
    milliseconds = 1000 * (time.perf_counter() - started)
    flat = [name for name, view in views.items() if np.ptp(view["rgb"]) == 0]
    if flat:
        raise DeclarationError(f"camera {flat[0]} shows one colour only; is it drawn?")
    yield Finding("ok", f"cameras {', '.join(views)}: {milliseconds:.1f} ms for all")
    yield Finding("ok", f"instruction of seed {env.seed}: {env.instruction!r}")


def _repeats(env: DeclaredEnv) -> Iterator[Finding]:
    """The same seed and commands give the same episode: what paired evaluations and repeated runs rest on."""
    runs = []
    for _ in range(2):
        first, _ = env.reset(seed=1)
        runs.append(_run(env, _commands(env)))
    error = _largest(runs)
    if error > 0:
        yield Finding(
            "warning", f"one seed gives other episodes: states differ by {error:.3g} after {MEASURED_STEPS} steps"
        )
    else:
        yield Finding("ok", "one seed and the same commands give the same states, bit for bit")
    other, _ = env.reset(seed=2)
    if np.array_equal(first["state"], other["state"]) and np.array_equal(camera_images(first), camera_images(other)):
        yield Finding("warning", "seeds 1 and 2 begin alike: demonstrations and evaluations would be one episode")


def _restores(env: DeclaredEnv) -> Iterator[Finding]:
    """A saved state goes on as it did: what rollback rests on."""
    env.reset(seed=0)
    _run(env, _commands(env))
    snapshot, commands = env.save(), _commands(env)
    runs = [_run(env, commands)]
    for _ in range(2):
        env.load(snapshot)
        runs.append(_run(env, commands))
    error, how = _largest(runs), "save and load" if env.restore_method == "simulator" else "repeating from the seed"
    text = f"states restored by {how} go on {f'{error:.3g} off' if error else 'bit for bit'}"
    yield Finding("ok" if error == 0 else "warning", f"{text} ({MEASURED_STEPS} steps)")


def _expert(env: DeclaredEnv) -> Iterator[Finding]:
    if env.declared.expert is None:
        yield Finding("warning", "no expert: demonstrations and corrections come from files or a teacher policy")
        return
    steps = []
    for seed in EXPERT_SEEDS:
        env.reset(seed=seed)
        try:
            while not env.success and env.step_count < env.step_limit:
                command = env.expert_action()
                check_commands(command, layout=env.layout)
                env.advance(command)
        except ExpertUnavailableError:
            pass
        steps += [env.step_count] if env.success else []
    text = f"the expert solves {len(steps)} of {len(EXPERT_SEEDS)} seeds"
    if not steps:
        raise DeclarationError(f"{text} within {env.step_limit} steps")
    yield Finding("ok", f"{text}, in {min(steps)} to {max(steps)} of {env.step_limit} steps")


def _commands(env: DeclaredEnv) -> np.ndarray:
    """Commands near the middle of the Box, of `ee` poses near the present one, [n, A]; always the same."""
    generator = np.random.default_rng(0)
    if env.layout.numbers == "ee":
        return np.repeat(env.state()[None], MEASURED_STEPS, axis=0)
    space: Any = env.declared.env.action_space
    low, high = (np.clip(ends, -LARGEST, LARGEST).astype(float) for ends in (space.low, space.high))
    return (low + high) / 2 + (high - low) * generator.uniform(-0.1, 0.1, size=(MEASURED_STEPS, len(low)))


def _run(env: DeclaredEnv, commands: np.ndarray) -> list[np.ndarray]:
    """States before the first command and after each."""
    states = [env.state()]
    for command in commands:
        env.advance(command)
        states.append(env.state())
    return states


def _largest(runs: Sequence[Sequence[np.ndarray]]) -> float:
    """Largest difference from the first run."""
    return max(float(np.abs(np.stack(run) - np.stack(runs[0])).max()) for run in runs)
