"""Rejection-sampling fine-tuning: sample traces and choose from them, and train on what was kept."""

from __future__ import annotations

from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.stages.base import BASE_MODEL, ENGINES, SECONDS_PER_ANSWER, Training


class Traces(StageKind):
    """Traces of a policy for the questions of the pool, and which of them are kept."""

    name = "traces"
    reads = ("model", "engine", "traces", "rewards")
    workers = ENGINES
    folder = "rft"
    is_live = True
    seconds_per_unit = SECONDS_PER_ANSWER

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Answers."""
        return (config.traces.items or config.questions.train) * config.traces.samples, "answers"


class RFT(Training):
    """Cross-entropy on the kept traces."""

    name = "rft"
    reads = ("model", "rft")
    makes_chain = True
    seconds_per_row = 0.006

    def needs(self, graph: Expansion) -> tuple[str, ...]:
        """Questions."""
        return ("questions",)

    def starts(self, graph: Expansion) -> tuple[str, str]:
        """From the base."""
        return BASE_MODEL

    def expand(self, graph: Expansion, step: Step) -> None:
        """Traces of the newest model, on which it or the base is trained."""
        graph.extend(step, {}, graph.base if graph.config.rft.start == "base" else graph.head, sampled=True)
