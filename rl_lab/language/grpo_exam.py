"""Short examinations in the middle of a run of GRPO: one sampled answer to every held-out question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rewards.compose import Rewards
from rl_lab.config.language import ExamineConfig
from rl_lab.json_lines import append_json_line
from rl_lab.language.answering import ask, collect, means, plain, rollout_groups, score
from rl_lab.language.grpo_state import HELD_OUT_FILE, Progress
from rl_lab.language.item_files import ItemFile
from rl_lab.language.model import item_prompt
from rl_lab.language.reward_failures import RewardFailures
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.records.types import Sampling, group_rewards
from rl_lab.seeding import integer
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout_learner import Weights


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
