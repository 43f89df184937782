"""Rejection-sampling fine-tuning: sample traces and choose from them, and train on what was kept."""

from __future__ import annotations

from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.errors import UserError
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.stages.base import BASE_MODEL, ENGINES, SECONDS_PER_ANSWER, TrainingKind


class TracesKind(StageKind):
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


class RFTKind(TrainingKind):
    """Cross-entropy on the kept traces."""

    name = "rft"
    after = ("questions",)
    start = BASE_MODEL
    reads = ("model", "rft")
    makes_chain = True
    seconds_per_row = 0.006

    def expand(self, graph: Expansion, step: Step) -> None:
        """Traces of the newest model, on which it or the base is trained."""
        graph.extend(step, {}, graph.base if graph.config.rft.start == "base" else graph.head, sampled=True)

    def check(self, config: RunConfig) -> None:
        """Traces can be sampled."""
        check_traces(config)


def check_traces(config: RunConfig) -> None:
    """The engine, the judge and the questions that traces need are there."""
    traces, judge = config.traces, config.rewards.judge
    if traces.max_tokens >= config.engine.max_model_len:
        raise UserError(
            f"engine.max_model_len is {config.engine.max_model_len}, but traces may be {traces.max_tokens} tokens long "
            "and come behind a prompt; raise it, or lower traces.max_tokens"
        )
    if traces.select.min_judge_score is not None and judge is None:
        raise UserError(
            f"traces.select.min_judge_score is {traces.select.min_judge_score:g}, but there is no judge to ask; give "
            "rewards.judge, or leave min_judge_score out"
        )
    num_train = config.questions.train
    if config.questions.train_file is None and (traces.items or 0) > num_train:
        raise UserError(
            f"traces.items is {traces.items}, but questions.train is {num_train}; ask no more than there are"
        )
