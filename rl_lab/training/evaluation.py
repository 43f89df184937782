"""Examinations of published weights: the same questions and episodes with the same seeds every time.

Those of both skills in joint training ask the development set, one sampled answer each, and run episodes on development
seeds. What is reported in the end is measured on others, so that a guard that chooses by these cannot flatter it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from envs.spatial_qa.items import Item
from rewards.rubric import Rewards
from rl_lab.common.files import append_json_line
from rl_lab.common.seeding import evaluation_seeds, integer
from rl_lab.graph.stage import StageContext
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.types import RolloutGroup, Sampling, Scores, all_completions, group_rewards
from rl_lab.rollouts.answering import FirstFailures, RewardFailures, means, plain
from rl_lab.rollouts.clock import Clock
from rl_lab.rollouts.rollouter import Questioner
from rl_lab.training.state import HELD_OUT_FILE, Progress
from rl_lab.workers.learner import Weights
from rl_lab.workers.pool import Batch, WorkerPool
from rl_lab.workers.simulation import Unit, env_specs, episode_units


def questions_at_once(config: Any) -> int:
    """Of an examination, in one call of an engine."""
    return 4 * config.engine.prompts_per_call


class QuestionExam:
    """Questions to a model in engines, as the sections `examine` and `engine` say."""

    def __init__(
        self,
        context: StageContext,
        items: Sequence[Item] | ItemFile,
        seed: Callable[[int], int],
        engines: WorkerPool,
        processor: HunYuanVLMoTProcessor,
        rewards: Rewards,
        samples: int = 1,
        temperature: float | None = None,
    ) -> None:
        """`samples` answers to each item, that follow from the seed of its place, at the section's temperature or
        another."""
        self.items, settings = [items[row] for row in range(len(items))], context.config.examine
        sampling = Sampling(
            settings.max_tokens, temperature=temperature or settings.temperature, num_generations=samples
        )
        at_once, clock, check_stop = questions_at_once(context.config), Clock(), context.check_stop
        self._questioner = Questioner(self.items, engines, processor, rewards, sampling, at_once, clock, check_stop)
        self._numbers = np.arange(len(self.items))
        self._prompts = self._questioner.prompts(self._numbers, map(seed, range(len(self.items))))

    def ask(self, weights: Weights) -> Batch:
        """Give the questions to the engines."""
        return self._questioner.ask(self._prompts, weights)

    def scored(self, asked: Batch, *, judge_all: bool = False) -> tuple[list[RolloutGroup], FirstFailures]:
        """Wait for the answers and score them; `judge_all` as of `rl_lab.rollouts.answering.score`."""
        return self._questioner.scored(self._numbers, self._prompts, asked, judge_all=judge_all)


class HeldOutExam(QuestionExam):
    """Short examinations along a run: one sampled answer to every held-out question."""

    def __init__(
        self,
        context: StageContext,
        seed: int,
        engines: WorkerPool,
        processor: HunYuanVLMoTProcessor,
        rewards: Rewards,
        failures: RewardFailures,
    ) -> None:
        items = ItemFile(context.inputs["questions"] / "held_out.arrow")
        super().__init__(context, items, partial(integer, seed, "held_out"), engines, processor, rewards)
        self.pass_threshold, self.path = context.config.examine.pass_threshold, context.out / HELD_OUT_FILE
        self.failures = failures

    def examine(self, weights: Weights, progress: Progress) -> dict[str, float]:
        """Append the rewards to the file; `held_out/..` and `held_out_category/..` as metrics."""
        groups, first_failures = self.scored(self.ask(weights))
        self.failures.tell(progress.step, first_failures)
        rewards = group_rewards(groups)[:, 0].tolist()
        append_json_line(self.path, {"step": progress.step, "tokens": progress.tokens, "rewards": plain(rewards)})
        return self._means(rewards)

    def _means(self, rewards: Sequence[float]) -> dict[str, float]:
        columns: dict[str, list[float]] = defaultdict(list)
        for item, reward in zip(self.items, rewards, strict=True):
            passed = reward if np.isnan(reward) else float(reward >= self.pass_threshold)
            columns["held_out/reward"].append(reward)
            columns["held_out/pass@1"].append(passed)
            columns[f"held_out_category/{item.category}"].append(reward)
        return means(columns.items())


class SkillExams:
    """Examines published weights with engines and simulators, both at work at once."""

    def __init__(
        self,
        context: StageContext,
        seed: int,
        engines: WorkerPool,
        simulations: WorkerPool,
        processor: HunYuanVLMoTProcessor,
        rewards: Rewards,
        tell: Callable[[FirstFailures], None],
    ) -> None:
        """`tell` names failed reward calls."""
        config, items = context.config, ItemFile(context.inputs["development"] / "development.arrow")
        self.questions = QuestionExam(context, items, partial(integer, seed, "exam"), engines, processor, rewards)
        self.simulations, self.execution = simulations, config.eval
        self.check_stop, self.tell = context.check_stop, tell
        episodes = evaluation_seeds("development", config.joint.exam_episodes)
        specs = env_specs(config, config.eval.instructions)
        self.units = [unit for spec in specs for unit in episode_units("evaluate", spec, episodes, seed)]

    def examine(self, weights: Weights, skills: Sequence[str] = ("language", "actions")) -> dict[str, Scores]:
        """Rewards of the questions and successes (0 or 1) of the episodes, by skill."""
        begun = {skill: self._begin(skill, weights) for skill in skills}
        return {skill: self._finish(skill, batch) for skill, batch in begun.items()}

    def _begin(self, skill: str, weights: Weights) -> Any:
        if skill == "language":
            return self.questions.ask(weights)

        def submit(actor: Any, unit: Unit) -> Any:
            return actor.evaluate.remote(unit, weights.reference, self.execution)

        return self.simulations.submit(submit, self.units)

    def _finish(self, skill: str, batch: Any) -> Scores:
        if skill == "language":
            groups, first_failures = self.questions.scored(batch)
            self.tell(first_failures)
            return tuple(completion.reward for completion in all_completions(groups))
        results = self.simulations.results(batch, self.check_stop)
        return tuple(float(row["success"]) for rows in results for row in rows)
