"""Simulation work cut into units of a fixed size, in a fixed order: what makes results independent of the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rl_lab.seeding import evaluation_seeds, robotwin_seeds, training_seeds
from rl_lab.workers.environments import EnvSpec
from rl_lab.workers.simulation import Unit

UNIT_EPISODES = {"demos": 5, "collect": 10, "evaluate": 25, "record": 20, "candidates": 10}
"""Episodes of one unit on the tabletop, that many run in lockstep; the batch size is part of a result's bits, so it is
no option. In RoboTwin, where a process has one scene at a time, a unit is one episode."""
CANDIDATES = 10
"""Seeds tried for each evaluation episode in RoboTwin, which rejects some, before an evaluation is given up."""


def env_specs(config: Any, instruction_split: str) -> list[EnvSpec]:
    """Every task of a configuration's `env` section in every variant."""
    env = config.env
    return [
        EnvSpec(env.backend, task, variant, env.image_size, instruction_split)
        for task in env.tasks
        for variant in env.variants
    ]


def episode_units(kind: str, spec: EnvSpec, seeds: Sequence[int], run_seed: int) -> Iterator[Unit]:
    """Units of a kind of work over environment seeds."""
    size = UNIT_EPISODES[kind] if spec.backend == "tabletop" else 1
    for start in range(0, len(seeds), size):
        yield Unit(spec, tuple(seeds[start : start + size]), run_seed)


def drawn_units(kind: str, spec: EnvSpec, name: str, count: int, run_seed: int) -> list[Unit]:
    """Units over `count` environment seeds of training, drawn by the run's seed, a name, task and variant."""
    seeds = training_seeds(run_seed, f"{name}/{spec.task}/{spec.variant}", count, spec.backend)
    return list(episode_units(kind, spec, seeds, run_seed))


def evaluation_groups(config: Any, run_seed: int) -> list[tuple[list[Unit], int]]:
    """Units of a configuration's `env` and `eval` sections, and how many of their episodes count, the first ones.

    On the tabletop all in one group. RoboTwin rejects seeds, so each task and variant is a group of its own with more
    seeds than are needed, in the order in which RoboTwin's own evaluation tries them.
    """
    settings = config.eval
    specs = env_specs(config, settings.instructions)
    if config.env.backend == "tabletop":
        seeds = evaluation_seeds(settings.seeds, settings.episodes)
        units = [unit for spec in specs for unit in episode_units("evaluate", spec, seeds, run_seed)]
        return [(units, len(specs) * len(seeds))]
    seeds = robotwin_seeds(settings.seeds, settings.robotwin_seed, CANDIDATES * settings.episodes)
    return [(list(episode_units("evaluate", spec, seeds, run_seed)), settings.episodes) for spec in specs]
