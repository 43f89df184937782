"""The language side: questions, the cold start, and examinations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from envs.spatial_qa.items import ConstantAnswer, Item, best_constant_answers, blank
from rewards.answers import OWN_TRUTH
from rewards.rubric import Rewards
from rl_lab.common.files import read_json_lines, write_json_lines
from rl_lab.common.seeding import integer
from rl_lab.common.stats import mean_interval
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import BASE, Expansion, ModelRef
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.graph.stage import StageContext
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import load_chat_processor, published
from rl_lab.records.item_files import ItemFile
from rl_lab.records.question_sets import check_files, run_limits
from rl_lab.records.types import RolloutGroup
from rl_lab.rollouts.answering import RewardFailures, engines, judge_agreement, make_rewards, plain, policy_folder
from rl_lab.rollouts.question_sets import development_set, sets_of_a_run, write_sets
from rl_lab.stages.base import BASE_MODEL, ENGINES, SECONDS_PER_ANSWER, SIMULATORS, TrainingKind
from rl_lab.stages.distill import teacher_config
from rl_lab.stages.gate import DEVELOPMENT_FILE
from rl_lab.stages.trl import trl_sft
from rl_lab.training.cold_start import check_ratios, cold_start_plan, left_out, validated
from rl_lab.training.dataset import train
from rl_lab.training.evaluation import QuestionExam, questions_at_once
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.learner import Weights
from rl_lab.workers.pool import WorkerPool

CONSTANTS_FROM = 400
"""Training questions on which the best constant answers are chosen."""


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

    def fits(self, config: RunConfig) -> None:
        """Only a run that asks nothing has no questions to ask."""
        asking = sorted(config.stage_names - {"questions", "cold_start"})
        for name in ("train", "held_out"):
            if asking and not getattr(config.questions, name) and name not in config.questions.files():
                raise ValueError(
                    f"questions.{name} is 0, but {', '.join(asking)} may ask them; give a number or a file"
                )

    def check(self, config: RunConfig) -> None:
        """Every row of the user's files can be used where it is given, and stands in one set."""
        files = config.questions.files()
        if files:
            check_files(files, run_limits(config), skip_bad=config.questions.skip_bad_rows)

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Questions."""
        questions = config.questions
        sources = sum(source.rows for source in questions.sources().values())
        imitated = sources if questions.cold_start_sources else sources + questions.cold_start
        return questions.train + imitated + questions.held_out, "questions"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """The questions of the pool, those of the cold start and the held-out ones, generated or from files."""
        write_sets(cluster, context, sets_of_a_run(context.config.questions, context.seed))


class DevelopmentKind(StageKind):
    """The questions that gates decide on, and joint runs examine on the way."""

    name = "development"
    named_in = ()
    reads = ("questions",)
    workers = SIMULATORS
    folder = "questions"
    questions_left_out = (
        *("train", "cold_start", "held_out", "split"),
        *("train_file", "cold_start_file", "held_out_file", "cold_start_sources", "validation_sources"),
    )
    seconds_per_unit = 0.02
    has_model = False

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Questions."""
        return config.questions.development, "questions"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """The questions that gates decide on: new scenes of the families of training."""
        write_sets(cluster, context, development_set(context.config.questions))


class ColdStartKind(TrainingKind):
    """Imitation of worked solutions and conversations."""

    name = "cold_start"
    after = ("questions",)
    reads = ("model", "cold_start")
    seconds_per_row = 0.006

    def expand(self, graph: Expansion, step: Step) -> None:
        """The base of everything that follows."""
        graph.add("cold_start", "cold_start", {"questions": "questions"})
        graph.base = graph.head = graph.newest = ModelRef(BASE, "cold_start")

    def fits(self, config: RunConfig) -> None:
        """Ratios are of the sources, every one of which is read; and what is validated is the model."""
        check_ratios(config.cold_start, tuple(config.questions.cold_start_sources))
        if config.questions.validation_sources and config.cold_start.ema:
            raise ValueError(
                f"cold_start.ema is {config.cold_start.ema:g}, which keeps an average as the model, but validation "
                "measures the last weights; set ema to 0, or leave questions.validation_sources out"
            )

    def finding(self, out: Path) -> str:
        """The last loss, that of validation, and rows that were too long."""
        return "; ".join(filter(None, (super().finding(out), validated(out), left_out(out))))

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Imitation of worked solutions and conversations, in the Learner or with TRL."""
        config = context.config
        plan = cold_start_plan(config.model, config.cold_start, context.inputs["questions"], context.seed, context)
        if config.cold_start.backend == "trl":
            trl_sft(context, plan)
        else:
            train(cluster, context, plan)


class ExamineKind(StageKind):
    """Answers to all held-out questions, scored."""

    name = "examine"
    named_in = ("stages", "repeat", "branch")
    after = ("questions",)
    reads = ("model", "engine", "examine", "rewards", "truth")
    is_joint = comes_again = True
    workers = ENGINES
    folder = "examinations"
    seconds_per_unit = SECONDS_PER_ANSWER

    def params(self, config: RunConfig) -> dict[str, Any]:
        """Of rewards those that it scores by."""
        params = super().params(config)
        return params | {"rewards": params["truth"] or params["rewards"], "truth": None}

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
        low = exam.low_temperature is not None
        return questions.held_out * (exam.samples + exam.blank_samples + low) + development, "answers"

    def finding(self, out: Path) -> str:
        """The mean reward on the held-out questions with its interval."""
        mean = self.measured(out)
        if not mean:
            return ""
        value, low, high = (mean[f"held_out_reward{end}"] for end in ("", "_low", "_high"))
        return f"reward {value:.3f} on {mean['questions']} questions, {low:.3f} to {high:.3f}"

    def measured(self, out: Path) -> dict[str, float]:
        """That reward, the ends of its interval, and questions."""
        found = [row.get("rewards", []) for row in read_json_lines(out / "results.jsonl", missing_ok=True)]
        means = [np.mean(known) for rewards in found if (known := [one for one in rewards if one is not None])]
        if not means:
            return {}
        mean = mean_interval(np.array(means)[:, None])
        ends = {"held_out_reward_low": mean.low, "held_out_reward_high": mean.high}
        return {"held_out_reward": mean.value, **ends, "questions": len(means)}

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Answers to all held-out questions, at a low temperature as well, to the same over grey pictures, and the best
        constant answers."""
        config = context.config
        exam, rewards = config.examine, make_rewards(config.truth or config.rewards)
        try:
            with engines(cluster, context) as pool:  # first, so that stages come by them in the order of the graph
                items = _items(context, "held_out")
                examiner = Examiner(context, pool, policy_folder(context), rewards)
                seen = examiner.answers(items, exam.samples, "seen")
                context.log(0, **judge_agreement(examiner.groups))
                unseen = examiner.answers([blank(item) for item in items], exam.blank_samples, "blank")
                low = exam.low_temperature and examiner.answers(items, 1, "low temperature", exam.low_temperature)
                if "development" in context.inputs:
                    _answer_development(cluster, context, examiner)
            constants = _constant_scores(items, _items(context, "train", CONSTANTS_FROM), rewards)
        finally:
            rewards.close()
        rows = [
            {"item": item.id, "task": item.task, "category": item.category, "reward_type": item.reward_type}
            | row
            | {"blank": other["rewards"], "constant": constant}
            for item, row, other, constant in zip(items, seen, unseen, constants, strict=True)
        ]
        rows = [row | {"low": one["rewards"]} for row, one in zip(rows, low, strict=True)] if low else rows
        write_json_lines(context.out / "results.jsonl", rows)


def _answer_development(cluster: Cluster, context: StageContext, examiner: Examiner) -> None:
    """Answers for the gates that compare this model with another."""
    items = _items(context, "development", role="development")
    rows = examiner.answers(items, context.config.examine.samples, "development")
    named = [{"item": item.id, "category": item.category} | row for item, row in zip(items, rows, strict=True)]
    write_json_lines(context.out / DEVELOPMENT_FILE, named)


class Examiner:
    """A model in engines, asked and scored."""

    def __init__(self, context: StageContext, engines: WorkerPool, policy: Path, rewards: Rewards) -> None:
        self.context, self.engines, self.rewards = context, engines, rewards
        self.processor: HunYuanVLMoTProcessor = load_chat_processor(policy)
        snapshot = published(policy)
        self.weights = Weights(snapshot.version, ray.put(snapshot))
        self.failures = RewardFailures(context)
        self.groups: list[RolloutGroup] = []
        """All that was scored so far."""

    def answers(
        self, items: Sequence[Item], samples: int, name: str, temperature: float | None = None
    ) -> list[dict[str, Any]]:
        """For every item the rewards of its answers, their lengths, whether they ended, and their texts.

        UserError where no answer has a reward.
        """
        config = self.context.config
        judged = name == "seen" and config.rewards.judge is not None
        rows: list[dict[str, Any]] = []
        first, first_failures = len(self.groups), dict[str, str]()
        names = ("development",) if name == "development" else ()
        exams = list(self._exams(items, samples, temperature, *names))
        asked = [exam.ask(self.weights) for exam in exams]
        for exam, batch in zip(exams, asked, strict=True):
            groups, newer = exam.scored(batch, judge_all=judged)
            self.groups += groups
            first_failures = first_failures | {**newer, **first_failures}
            rows += [
                {
                    "rewards": [answer.reward for answer in group.completions],
                    "tokens": [len(answer.tokens) for answer in group.completions],
                    "finished": [answer.finished for answer in group.completions],
                    "answers": [answer.text for answer in group.completions],
                }
                for group in groups
            ]
            self.context.progress(len(rows), len(items), name)
        self.failures.check_all(name, self.groups[first:], first_failures)
        return rows

    def _exams(
        self, items: Sequence[Item], samples: int, temperature: float | None, *names: str
    ) -> Iterator[QuestionExam]:
        """As many items as are asked at once; samples depend on the run's seed, the names and the item's place."""
        size = questions_at_once(self.context.config)
        for start in range(0, len(items), size):

            def seed(place: int, start: int = start) -> int:
                return integer(self.context.seed, "examine", *names, start + place)

            some = items[start : start + size]
            how = (self.engines, self.processor, self.rewards, samples, temperature)
            yield QuestionExam(self.context, some, seed, *how)


def _items(context: StageContext, name: str, most: int | None = None, role: str = "questions") -> list[Item]:
    """The items of a set, or the first of them."""
    file = ItemFile(context.inputs[role] / f"{name}.arrow")
    return [file[row] for row in range(len(file) if most is None else min(len(file), most))]


UNVERIFIED = ("open", OWN_TRUTH)
"""Reward types that no verifier scores."""


def _constant_scores(items: Sequence[Item], training: Sequence[Item], rewards: Rewards) -> list[float | None]:
    """What the best constant answer of its generator, chosen on training questions, earns on each item.

    None for questions that no verifier scores, and 0 for a generator that training does not have.
    """

    def reward(reply: str, item: Item) -> float:
        columns = {"answer": [item.answer], "reward_type": [item.reward_type], "images": [item.images]}
        value = rewards([item.prompt], [reply], **columns)[0]
        return math.nan if value is None else value

    closed = [item for item in training if item.reward_type not in UNVERIFIED and item.solution]
    best: dict[str, ConstantAnswer] = best_constant_answers(closed, reward)[0] if closed else {}
    return [
        None
        if item.reward_type in UNVERIFIED
        else plain([reward(best[item.task].reply, item) if item.task in best else 0.0])[0]
        for item in items
    ]
