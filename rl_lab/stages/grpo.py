"""Reinforcement learning with a curriculum."""

from __future__ import annotations

from typing import Any

from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node
from rl_lab.stages.base import BASE_MODEL, ENGINES, TrainingKind


class GRPOKind(TrainingKind):
    """Reinforcement learning on groups of answers, whose items a curriculum chooses."""

    name = "grpo"
    after = ("questions",)
    start = BASE_MODEL
    reads = ("model", "engine", "grpo", "rl", "curriculum", "rewards", "truth", "examine")
    workers = ENGINES
    folder = "grpo"
    is_live = examines = True
    section = "rl"
    seconds_per_row = 0.012

    def expand(self, graph: Expansion, step: Step) -> None:
        """The next model of a chain, or every arm of a comparison."""
        if graph.is_chain:
            graph.extend(step, {}, graph.head)
        elif graph.hashed:  # else the arms' own sections are not checked yet
            _add_arms(graph)

    def answer_length(self, config: RunConfig) -> int:
        """As configured."""
        return config.grpo.max_completion_length

    def rows(self, node: Node, config: RunConfig) -> float:
        """Answers of a batch."""
        return config.curriculum.batch_size * config.grpo.num_generations


def _add_arms(graph: Expansion) -> None:
    """Every curriculum or reward and every replicate, from the same base."""
    inputs = {"questions": "questions"} | graph.base.inputs()
    for arm, sections in graph.config.arms.items():
        params = graph.params("grpo", graph.config.model_copy(update=sections))
        for replicate in range(1, graph.config.replicates + 1):
            name, labels = f"{arm}.{replicate}", dict[str, Any](method=arm, replicate=replicate)
            own = params | {"replicate": replicate}
            trained = graph.add(f"{name}.grpo", "grpo", inputs, params=own, sections=sections, **labels).name
            if "examine" in graph.names:
                graph.add(f"{name}.examine", "examine", inputs | {"policy": trained}, **labels)
