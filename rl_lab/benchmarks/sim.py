"""What the embedded simulator costs on one core: control steps and observations per second beside the bare physics.

The bare physics is `mj_step` on the same joint targets, recorded from one expert episode, so it holds and carries the
block as the environment does, with neither inverse kinematics nor Python between the sub-steps. Rates are
per second of CPU time (all threads of this process): what one core does, whatever else the machine is doing. The kinds
take turns in short rounds and the median counts. Where RoboTwin's runtime is installed its steps on the box robot are
measured as well, CPU time of both processes (see `box_robot`). The last two rows are wall time: the same expert
episodes in this process and in a Ray worker, images sent back included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from envs.options import Seconds
from envs.tabletop import env as snapshot
from envs.tabletop.env import TabletopEnv
from envs.tabletop.scene import SUBSTEPS, compile_scene
from envs.tabletop.tasks import TASKS
from rl_lab.benchmarks import box_robot
from rl_lab.config.placement import Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit

TASK, SEED, IMAGE_SIZE = "handover_block", 0, 64
ROUNDS = 10


@dataclass(frozen=True)
class Replay:
    """One expert episode: actions [T, 16] and the snapshots [T + 1] around them."""

    actions: np.ndarray
    snapshots: list[bytes]


def record_episode(env: TabletopEnv) -> Replay:
    """Run the expert to success from a fixed seed."""
    env.reset(seed=SEED)
    actions, snapshots = [], [env.save()]
    while not env.success and env.step_count < env.step_limit:
        actions.append(env.expert_action())
        env.advance(actions[-1])
        snapshots.append(env.save())
    return Replay(np.array(actions), snapshots)


def physics_steps(recording: Replay) -> Iterator[None]:
    """Each item is one control step's worth of bare `mj_step` under the recorded joint targets."""
    model = compile_scene(TASKS[TASK]().objects_xml(), False)
    data = mujoco.MjData(model)
    states = [snapshot.unpack(saved)[1] for saved in recording.snapshots]
    targets = []
    for state in states[1:]:
        snapshot.restore(model, data, state)
        targets.append(data.ctrl.copy())
    while True:
        snapshot.restore(model, data, states[0])
        for target in targets:
            data.ctrl[:] = target
            mujoco.mj_step(model, data, SUBSTEPS)
            yield


def control_steps(env: TabletopEnv, recording: Replay, images: bool) -> Iterator[None]:
    """Each item is one `advance`, followed by a three-camera observation if `images`; the episode repeats."""
    while True:
        env.load(recording.snapshots[0])
        for action in recording.actions:
            env.advance(action)
            if images:
                env.observe()
            yield


def observations(env: TabletopEnv, recording: Replay) -> Iterator[None]:
    """Each item renders the three cameras half-way through the episode."""
    env.load(recording.snapshots[0])
    for action in recording.actions[: len(recording.actions) // 2]:
        env.advance(action)
    while True:
        env.observe()
        yield


def save_and_load(env: TabletopEnv, recording: Replay) -> Iterator[None]:
    """Each item is one `save` and one `load`."""
    env.load(recording.snapshots[0])
    while True:
        env.load(env.save())
        yield


def rates(kinds: dict[str, Iterator[Any]], seconds: float) -> dict[str, float]:
    """Items per second of each kind: the median over rounds in which they take turns, `seconds` for each in all."""
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    for kind in kinds.values():
        next(kind)
    for _ in range(ROUNDS):
        for name, kind in kinds.items():
            count, elapsed, start = 0, 0.0, time.process_time()
            while elapsed < seconds / ROUNDS:
                next(kind)
                count, elapsed = count + 1, time.process_time() - start
            samples[name].append(count / elapsed)
    return {name: statistics.median(values) for name, values in samples.items()}


def row(name: str, value: float, unit: str, ratio: float | None = None, baseline: str = "") -> dict[str, Any]:
    """One line of the table: a measurement, and its ratio to the row named `baseline`."""
    return {"name": name, "value": value, "unit": unit, "ratio": ratio, "baseline": baseline}


def worker_seconds(episodes: int = 4, rounds: int = 3) -> tuple[float, float]:
    """Wall seconds of a unit of demonstrations in this process and in a Ray worker, medians of rounds in turn."""
    unit = Unit(EnvSpec("tabletop", TASK, "clean", IMAGE_SIZE), tuple(range(episodes)), run_seed=0)
    local, cluster = Simulation(), Cluster(WorkersConfig(simulation=1), Placement(device="cpu"))
    try:
        with cluster.simulation_pool() as pool:
            kinds = {
                "local": lambda: local.demonstrate(unit, 0.0),
                "ray": lambda: list(pool.map(lambda actor, item: actor.demonstrate.remote(item, 0.0), [unit])),
            }
            samples: dict[str, list[float]] = {name: [] for name in kinds}
            for number in range(rounds + 1):
                for name, call in kinds.items():
                    start = time.perf_counter()
                    call()
                    if number > 0:  # the first round builds the environments
                        samples[name].append(time.perf_counter() - start)
    finally:
        cluster.close()
    return statistics.median(samples["local"]), statistics.median(samples["ray"])


def robotwin_rows(tabletop: dict[str, float], views: str, seconds: float) -> list[dict[str, Any]]:
    """RoboTwin's own code on the box robot beside the tabletop, and where a step with a look spends its time."""
    found, shares = box_robot.measure(seconds)
    rows = []
    for kind, name in (("no images", "advance, no images"), ("images", f"advance, {views}")):
        rows.append(row(f"RoboTwin, {name}", found[kind], "control steps/s", found[kind] / tabletop[name], name))
    return rows + [row(f"RoboTwin, {part}", share, "of a step with images") for part, share in shares.items()]


def run(seconds: Seconds = 5.0) -> list[dict[str, Any]]:
    """Measure every kind for about `seconds` each and return the table's rows."""
    state, vision = TabletopEnv(TASK, image_size=None), TabletopEnv(TASK, image_size=IMAGE_SIZE)
    recording = record_episode(state)
    physics, views = "mj_step alone", f"3 cameras {IMAGE_SIZE}x{IMAGE_SIZE}"
    steps = {
        physics: physics_steps(recording),
        "advance, no images": control_steps(state, recording, images=False),
        f"advance, {views}": control_steps(vision, recording, images=True),
    }
    measured = rates(steps, seconds)
    rows = [row(name, value, "control steps/s", value / measured[physics], physics) for name, value in measured.items()]
    parts = {f"observe, {views}": observations(vision, recording), "save and load": save_and_load(state, recording)}
    rows += [row(name, value, "1/s") for name, value in rates(parts, seconds).items()]
    rows += robotwin_rows(measured, views, seconds) if box_robot.can_measure() else []
    local, ray = worker_seconds()
    loop = "4 episodes in this process"
    return [*rows, row(loop, local, "s"), row("4 episodes in a Ray worker", ray, "s", ray / local, loop)]
