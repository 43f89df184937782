"""What the stages of a joint run are going to cost; see `plan`."""

from __future__ import annotations

from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node

KINDS = ("warm_start", "joint")


def joint_units(node: Node, config: RunConfig) -> tuple[int, str]:
    """How many units of work a stage of these kinds is, and what they are."""
    if node.kind == "warm_start":
        return config.cold_start.steps + config.sft.steps, "steps"
    return sum(_turns(node, config).values()), "turns"


def _turns(node: Node, config: RunConfig) -> dict[str, int]:
    blocks = -(-config.optimise.steps // config.joint.block)
    turns = {"grpo": config.rl.steps, "rpro": config.joint.rounds * blocks}
    arm = node.params["arm"]
    return {part: count for part, count in turns.items() if arm in (f"{part}_alone", "together", "sequence")}


def joint_seconds(node: Node, config: RunConfig, per_unit: dict[str, float], per_row: dict[str, float]) -> float:
    """Rough seconds of a nano preset, from those of a unit and of a row of other kinds of stages."""
    if node.kind == "warm_start":
        language, actions = config.cold_start, config.sft
        costs = {"cold_start": language.steps * language.batch_size, "sft": actions.steps * actions.batch_size}
        return sum(rows * per_row[kind] for kind, rows in costs.items())
    turns, joint = _turns(node, config), config.joint
    scenes = len(config.env.tasks) * len(config.env.variants)
    exams = 1 + sum(turns.values()) / joint.exam_every
    seconds = exams * joint.exam_episodes * scenes * per_unit["evaluate"]
    if "grpo" in turns:
        seconds += turns["grpo"] * config.curriculum.batch_size * config.grpo.num_generations * per_row["grpo"]
    if "rpro" in turns:
        rows = joint.rounds * config.optimise.steps * config.optimise.batch_size
        seconds += rows * per_row["optimise"] + joint.rounds * config.collect.pairs * per_unit["collect"]
    return seconds
