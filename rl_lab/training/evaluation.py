"""Short examinations in the middle of a run, of questions or of both skills: the same ones every time.

Of GRPO: one sampled answer to every held-out question. Of a joint run: none is held out; questions are the development
set, one sampled answer each, and episodes are on development seeds. What is reported in the end is measured on others,
so that a guard that chooses by these cannot flatter the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.rubric import Rewards
from rl_lab.config.language import ExamineConfig
from rl_lab.files import append_json_line
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.token_batches import item_prompt
from rl_lab.records.types import Sampling, all_completions, group_rewards
from rl_lab.rollouts.answering import FirstFailures, RewardFailures, ask, collect, means, plain, rollout_groups, score
from rl_lab.seeding import evaluation_seeds, integer
from rl_lab.training.state import HELD_OUT_FILE, Progress
from rl_lab.workers.learner import Weights
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.simulation import Unit, env_specs, episode_units


class HeldOutExam:
    """The same questions and the same seeds every time."""

    def __init__(
        self,
        items: ItemFile,
        processor: HunYuanVLMoTProcessor,
        rewards: Rewards,
        settings: ExamineConfig,
        *,
        seed: int,
        prompts_per_call: int,
        out: Path,
        failures: RewardFailures,
    ) -> None:
        self.items = [items[row] for row in range(len(items))]
        seeds = [integer(seed, "held_out", row) for row in range(len(items))]
        pairs = zip(self.items, seeds, strict=True)
        self.prompts = [item_prompt(item, processor, seed) for item, seed in pairs]
        self.processor, self.rewards, self.settings = processor, rewards, settings
        self.prompts_per_call, self.path, self.failures = prompts_per_call, out / HELD_OUT_FILE, failures

    def examine(
        self, engines: WorkerPool, weights: Weights, progress: Progress, check_stop: Callable[[], None]
    ) -> dict[str, float]:
        """Append the rewards to the file; `held_out/..` and `held_out_category/..` as metrics."""
        sampling = Sampling(self.settings.max_tokens, temperature=self.settings.temperature)
        asked = ask(engines, self.prompts, sampling, weights.reference, self.prompts_per_call)
        answers, _ = collect(engines, asked, check_stop)
        groups = rollout_groups(self.items, self.prompts, answers, self.processor)
        groups, first_failures = score(self.rewards, groups)
        self.failures.tell(progress.step, first_failures)
        rewards = group_rewards(groups)[:, 0]
        append_json_line(self.path, {"step": progress.step, "tokens": progress.tokens, "rewards": plain(rewards)})
        return self._means(rewards)

    def _means(self, rewards: np.ndarray) -> dict[str, float]:
        columns: dict[str, list[float]] = defaultdict(list)
        for item, reward in zip(self.items, rewards.tolist(), strict=True):
            passed = reward if np.isnan(reward) else float(reward >= self.settings.pass_threshold)
            columns["held_out/reward"].append(reward)
            columns["held_out/pass@1"].append(passed)
            columns[f"held_out_category/{item.category}"].append(reward)
        return means(columns.items())


class SkillExams:
    """Examines published weights with engines and simulators, both at work at once."""

    def __init__(
        self,
        items: ItemFile,
        processor: HunYuanVLMoTProcessor,
        rewards: Rewards,
        engines: WorkerPool,
        simulations: WorkerPool,
        config: Any,
        *,
        seed: int,
        check_stop: Callable[[], None],
        tell: Callable[[FirstFailures], None],
    ) -> None:
        """Of the configuration: examine, engine, env, eval and joint. `tell` names failed reward calls."""
        self.items = [items[row] for row in range(len(items))]
        self.processor, self.rewards, self.config = processor, rewards, config
        self.engines, self.simulations, self.check_stop, self.tell = engines, simulations, check_stop, tell
        seeds = [integer(seed, "exam", row) for row in range(len(items))]
        self.prompts = [item_prompt(item, processor, seed) for item, seed in zip(self.items, seeds, strict=True)]
        episodes = evaluation_seeds("development", config.joint.exam_episodes)
        specs = env_specs(config, config.eval.instructions)
        self.units = [unit for spec in specs for unit in episode_units("evaluate", spec, episodes, seed)]

    def examine(self, weights: Weights, skills: Sequence[str] = ("language", "actions")) -> dict[str, Scores]:
        """Rewards of the questions and successes (0 or 1) of the episodes, by skill."""
        begun = {skill: self._begin(skill, weights) for skill in skills}
        return {skill: self._finish(skill, batch) for skill, batch in begun.items()}

    def _begin(self, skill: str, weights: Weights) -> Any:
        settings = self.config.examine
        if skill == "language":
            sampling = Sampling(settings.max_tokens, temperature=settings.temperature)
            at_once = 4 * self.config.engine.prompts_per_call
            return ask(self.engines, self.prompts, sampling, weights.reference, at_once)
        execute = self.config.eval.execute

        def submit(actor: Any, unit: Unit) -> Any:
            return actor.evaluate.remote(unit, weights.reference, execute)

        return self.simulations.submit(submit, self.units)

    def _finish(self, skill: str, batch: Any) -> Scores:
        if skill == "language":
            answers, _ = collect(self.engines, batch, self.check_stop)
            groups = rollout_groups(self.items, self.prompts, answers, self.processor)
            groups, first_failures = score(self.rewards, groups)
            self.tell(first_failures)
            return [completion.reward for completion in all_completions(groups)]
        return [float(row["success"]) for rows in self.simulations.results(batch, self.check_stop) for row in rows]


Scores = Sequence[float | None]
"""Of each question or episode, in [0, 1]; None: it could not be scored."""
