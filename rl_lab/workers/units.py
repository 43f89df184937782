"""Simulation work cut into units of a fixed size, in a fixed order: what makes results independent of the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rl_lab.seeding import evaluation_seeds
from rl_lab.workers.simulation import EnvSpec, Unit

UNIT_EPISODES = {"demos": 5, "collect": 10, "evaluate": 25, "record": 20, "candidates": 10}
"""Episodes of one unit, that many run in lockstep; the batch size is part of a result's bits, so it is no option."""


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
    size = UNIT_EPISODES[kind]
    for start in range(0, len(seeds), size):
        yield Unit(spec, tuple(seeds[start : start + size]), run_seed)


def evaluation_units(config: Any, run_seed: int) -> list[Unit]:
    """The evaluation episodes of a configuration's `env` and `eval` sections."""
    settings = config.eval
    seeds = evaluation_seeds(settings.seeds, settings.episodes)
    specs = env_specs(config, settings.instructions)
    return [unit for spec in specs for unit in episode_units("evaluate", spec, seeds, run_seed)]
