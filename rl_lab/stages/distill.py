"""On-policy distillation: the teacher, the student, and the control that imitates the teacher."""

from __future__ import annotations

from typing import Any

from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion, ModelRef
from rl_lab.graph.nodes import StageKind
from rl_lab.stages.base import BASE_MODEL, ENGINES, TrainingKind


def teacher_config(config: RunConfig) -> RunConfig:
    """The run with the teacher's model and cold start in place of the student's."""
    return config.model_copy(update=_teacher_sections(config))


def _teacher_sections(config: RunConfig) -> dict[str, Any]:
    """What the teacher has of its own."""
    training = config.teacher.training
    return {"model": config.teacher.model} | ({} if training is None else {"cold_start": training})


class TeacherKind(StageKind):
    """Another base, with sizes and settings of its own; a node of this kind only for a checkpoint as it is."""

    name = "teacher"
    after = ("questions",)
    reads = ("model",)
    learns = True
    folder = "checkpoints"
    makes_chain = True
    makes = "model"

    def expand(self, graph: Expansion, step: Step) -> None:
        """Beside the chain."""
        config = graph.config
        graph.teacher = graph.newest = ModelRef("teacher", "teacher")
        kind = "teacher" if config.teacher.training is None else "cold_start"
        inputs = {} if kind == "teacher" else {"questions": "questions"}
        params, labels = graph.params(kind, teacher_config(config)), graph.labels(graph.teacher, None)
        graph.add("teacher", kind, inputs, params=params, sections=_teacher_sections(config), **labels)

    def check(self, config: RunConfig) -> None:
        """It and the student can be compared; see `rl_lab.rollouts.teacher`."""
        from rl_lab.rollouts.teacher import check_teacher  # here, because it imports the model

        check_teacher(config)


class DistillKind(TrainingKind):
    """The student answers, the teacher reads, the student learns."""

    name = "distill"
    after = ("questions", "teacher")
    start = BASE_MODEL
    reads = ("model", "engine", "grpo", "distill", "rewards", "truth", "examine")
    workers = ENGINES
    folder = "grpo"
    is_live = examines = makes_chain = True
    seconds_per_row = 0.016

    def expand(self, graph: Expansion, step: Step) -> None:
        """From the newest model of the chain."""
        assert graph.teacher is not None
        graph.before_distill = graph.head
        graph.extend(step, graph.teacher.inputs("teacher"), graph.head)

    def answer_length(self, config: RunConfig) -> int:
        """As configured."""
        return config.distill.max_completion_length


class ImitateKind(TrainingKind):
    """Cross-entropy on the teacher's answers, from where distill starts; not part of the chain."""

    name = "imitate"
    after = ("questions", "teacher")
    start = BASE_MODEL
    reads = ("model", "engine", "imitate", "rewards", "examine")
    workers = ENGINES
    examines = makes_chain = True
    seconds_per_row = 0.006

    def expand(self, graph: Expansion, step: Step) -> None:
        """Traces of the teacher, then the training."""
        assert graph.teacher is not None
        config, questions, more = graph.config, {"questions": "questions"}, {"replicate": 1}
        labels = graph.labels(ModelRef("imitate", None), None)
        traces = graph.add(
            "imitate.traces",
            "traces",
            questions | graph.teacher.inputs(),
            params=graph.params("traces", teacher_config(config)),
            more=more,
            sections=_teacher_sections(config),
            **labels,
        )
        student = graph.before_distill or graph.head
        inputs = questions | {"traces": traces.name} | student.inputs()
        graph.add("imitate", "imitate", inputs, more=more, **labels)
        graph.newest = ModelRef("imitate", "imitate")
