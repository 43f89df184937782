"""The language side: questions, the cold start, and examinations."""

from __future__ import annotations

from dataclasses import replace

from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import BASE, Expansion, ModelRef
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.stages.base import BASE_MODEL, ENGINES, SECONDS_PER_ANSWER, SIMULATORS, TrainingKind
from rl_lab.stages.distill import teacher_config


class QuestionsKind(StageKind):
    """The questions of the pool, those of the cold start and the held-out ones, generated or from files."""

    name = "questions"
    reads = ("questions",)
    is_joint = True
    workers = SIMULATORS
    folder = "questions"
    seconds_per_unit = 0.02
    has_model = False

    def expand(self, graph: Expansion, step: Step) -> None:
        """All sets; those of the short examinations of a joint run as well."""
        graph.add("questions", "questions")
        if graph.config.is_joint:
            graph.add("development", "development")

    def check(self, config: RunConfig) -> None:
        """Every row of the user's files can be used where it is given, and stands in one set."""
        files = config.questions.files()
        if files:
            from rl_lab.records.question_sets import check_files, run_limits  # here, because it imports the model

            check_files(files, run_limits(config), skip_bad=config.questions.skip_bad_rows)

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Questions."""
        questions = config.questions
        return questions.train + questions.cold_start + questions.held_out, "questions"


class DevelopmentKind(StageKind):
    """The questions that gates decide on, and joint runs examine on the way."""

    name = "development"
    reads = ("questions",)
    workers = SIMULATORS
    folder = "questions"
    questions_left_out = (
        *("train", "cold_start", "held_out", "split"),
        *("train_file", "cold_start_file", "held_out_file"),
    )
    seconds_per_unit = 0.02
    has_model = False

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Questions."""
        return config.questions.development, "questions"


class ColdStartKind(TrainingKind):
    """Imitation of worked solutions."""

    name = "cold_start"
    after = ("questions",)
    reads = ("model", "cold_start")
    seconds_per_row = 0.006

    def expand(self, graph: Expansion, step: Step) -> None:
        """The base of everything that follows."""
        graph.add("cold_start", "cold_start", {"questions": "questions"})
        graph.base = graph.head = graph.newest = ModelRef(BASE, "cold_start")


class ExamineKind(StageKind):
    """Answers to all held-out questions, scored."""

    name = "examine"
    after = ("questions",)
    reads = ("model", "engine", "examine", "rewards", "truth")
    is_joint = comes_again = True
    workers = ENGINES
    folder = "examinations"
    seconds_per_unit = SECONDS_PER_ANSWER

    def starts(self, graph: Expansion) -> tuple[str, str] | None:
        """From the base, or in a pipeline from whatever model is the newest."""
        return None if graph.is_chain and graph.newest is not None else BASE_MODEL

    def expand(self, graph: Expansion, step: Step) -> None:
        """Of the newest model, which becomes what the next gate compares with, if it is of the chain."""
        model = graph.newest
        assert model is not None
        if model.name in graph.examined:
            raise ValueError(f"stages: examine comes twice for the model {model.name}; leave one out")
        graph.examined.add(model.name)
        config = teacher_config(graph.config) if model == graph.teacher else graph.config
        inputs = {"questions": "questions"} | model.inputs()
        labels = graph.labels(model, step.cycle)
        params = graph.params("examine", config)
        node = graph.add(f"{model.name}.examine", "examine", inputs, params=params, **labels)
        graph.newest = examined = replace(model, examined=node.name)
        if model == graph.head:
            graph.reference, graph.head, graph.previous = examined, examined, graph.reference

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Answers, also to grey pictures, and to the questions of gates."""
        questions, exam = config.questions, config.examine
        development = questions.development * exam.samples * ("development" in node.inputs)
        return questions.held_out * (exam.samples + exam.blank_samples) + development, "answers"
