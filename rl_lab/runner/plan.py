"""What a run is going to do and what it is going to cost, before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node
from rl_lab.runner.store import Store

CORES = 2
"""The estimate is for a machine with so many."""
SECONDS_PER_UNIT = {"demos": 0.25, "collect": 1.0, "evaluate": 0.2, "report": 15.0, "questions": 0.015, "examine": 0.03}
"""An expert episode, a preference pair, a policy episode, the page, a question, an answer."""
SECONDS_PER_ROW = {"sft": 0.005, "optimise": 0.0065, "cold_start": 0.006, "grpo": 0.012}
"""A row of a batch through one training step, everything trainable; measured, like the above, with the nano preset in
the main experiment, where a second stage runs beside most."""
SECONDS_PER_STAGE = 5.0
"""Processes that start, weights that are loaded."""
EXPERT_ONLY = 0.15
"""Times that, when the prefix is computed once for all steps."""
PRESET_FACTOR = {"nano": 1, "small": 6, "mini": 25, "mot-2b": 1000}
"""Times the seconds of steps with a policy, by parameter count; only nano was measured."""


def units(node: Node, config: RunConfig) -> tuple[int, str]:
    """How many units of work a stage is, and what they are."""
    scenes = len(config.env.tasks) * len(config.env.variants)
    return {
        "demos": (config.demos.episodes * scenes, "episodes"),
        "sft": (config.sft.steps, "steps"),
        "collect": (config.collect.pairs, "pairs"),
        "optimise": (config.optimise.steps, "steps"),
        "evaluate": (config.eval.episodes * scenes, "episodes"),
        "questions": (config.questions.train + config.questions.cold_start + config.questions.held_out, "questions"),
        "cold_start": (config.cold_start.steps, "steps"),
        "examine": (config.questions.held_out * (config.examine.samples + config.examine.blank_samples), "answers"),
        "grpo": (config.rl.steps, "steps"),
        "report": (1, "page"),
    }[node.kind]


def _seconds_per_unit(node: Node, config: RunConfig) -> float:
    rows = {
        "sft": config.sft.batch_size,
        "optimise": config.optimise.batch_size,
        "cold_start": config.cold_start.batch_size,
        "grpo": config.curriculum.batch_size * config.grpo.num_generations,
    }
    if node.kind not in rows:
        return SECONDS_PER_UNIT[node.kind]
    share = EXPERT_ONLY if node.kind == "optimise" and config.optimise.train == ("expert",) else 1.0
    return share * rows[node.kind] * SECONDS_PER_ROW[node.kind]


def seconds(node: Node, config: RunConfig) -> float:
    """Rough wall time of a stage."""
    factor = PRESET_FACTOR[config.model.preset] if node.kind not in ("demos", "questions", "report") else 1
    return SECONDS_PER_STAGE + units(node, config)[0] * _seconds_per_unit(node, config) * factor


def wall_seconds(nodes: Sequence[Node], costs: Mapping[str, float]) -> float:
    """Of the whole graph: its longest path, or all its work shared by the cores."""
    finish: dict[str, float] = {}
    for node in nodes:
        finish[node.name] = costs[node.name] + max((finish[name] for name in node.inputs.values()), default=0.0)
    return max(max(finish.values()), sum(costs.values()) / CORES)


def plan_table(config: RunConfig, nodes: Sequence[Node], hashes: Mapping[str, str], store: Store) -> str:
    """One row a stage: name, hash, work, rough minutes, and whether a stored result is reused; then the wall time."""
    rows, costs, seen = [], {}, set()
    for node in nodes:
        digest = hashes.get(node.name, "")
        reused = bool(digest) and (digest in seen or store.has(digest))
        seen.add(digest)
        costs[node.name] = cost = 0.0 if reused else seconds(node, config)
        amount = " ".join(map(str, units(node, config)))
        rows.append(
            f"  {node.name:28} {digest[:12]:12}  {amount:>14}  {cost / 60:7.1f} min{'  reused' if reused else ''}"
        )
    total = wall_seconds(nodes, costs) / 60
    note = "" if config.model.preset == "nano" else "; only nano was measured"
    return "\n".join([*rows, f"  about {total:.0f} min on two CPU cores, if nothing else runs{note}"])
