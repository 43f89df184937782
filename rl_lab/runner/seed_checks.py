"""Episodes that a run is examined on are none of those that it is given to learn from."""

from __future__ import annotations

from collections.abc import Iterable

from rl_lab.config.schema import RunConfig
from rl_lab.errors import UserError
from rl_lab.seeding import evaluation_seeds

Place = tuple[str, str, int]
"""Task, variant and environment seed of an episode."""
SHOWN = 20


def examined(config: RunConfig) -> set[Place]:
    """The episodes of the evaluations and, of joint training, of its examinations."""
    from rl_lab.workers.units import env_specs, evaluation_groups  # here, because they import the simulator's workers

    found: set[Place] = set()
    if "evaluate" in config.stage_names:
        units = [unit for units, _ in evaluation_groups(config, config.seed) for unit in units]
        found |= {(unit.env.task, unit.env.variant, seed) for unit in units for seed in unit.seeds}
    if "joint" in config.stage_names:
        seeds = evaluation_seeds("development", config.joint.exam_episodes)
        found |= {(spec.task, spec.variant, seed) for spec in env_specs(config, "seen") for seed in seeds}
    return found


def check_learned(config: RunConfig, where: str, places: Iterable[Place]) -> None:
    """UserError, naming them, for given episodes that the run is examined on."""
    shared = sorted(set(places) & examined(config))
    if shared:
        listed = ", ".join(f"{task} {variant} {seed}" for task, variant, seed in shared[:SHOWN])
        more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        raise UserError(
            f"{where}: {len(shared)} episodes are those that the run is examined on (task, variant, seed: {listed}"
            f"{more}); leave them out, or examine on other seeds (eval.seeds is {config.eval.seeds})"
        )
