"""A policy with both skills to begin with: worked solutions and demonstrations, interleaved on one learner.

Cross-entropy trains vision and language, flow matching (with its probe) everything; each has its own optimizer and
schedule (sections `cold_start` and `sft`), and their numbers of steps are the ratio in which they take turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rl_lab.config.actions import SFTConfig
from rl_lab.config.language import ColdStartConfig
from rl_lab.learner.actions import SFTPlan, Start, sft_parts, starting_policy
from rl_lab.learner.cold_start import Source, calibrate, conversation_data, conversation_objective
from rl_lab.learner.dtype import FromModel
from rl_lab.learner.plans import DataFeed, Parts
from rl_lab.model.checkpoint import LanguageModel, vlm_processor
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.records.episodes import read_episodes

LANGUAGE, ACTIONS = "language", "actions"


@dataclass(frozen=True)
class WarmStartPlan(FromModel):
    """Both imitations at once, from a preset's random weights or from a checkpoint of a policy."""

    actions: SFTPlan
    language: ColdStartConfig
    solutions: Path
    """File of `rl_lab.records.item_files`."""

    name = ACTIONS
    """After whose steps weights are averaged, because they train all."""

    @property
    def dtype(self) -> str | None:
        """See `FromModel`."""
        return self.actions.dtype

    def in_dtype(self, dtype: str) -> Self:
        """See `FromModel`."""
        return replace(self, actions=self.actions.in_dtype(dtype))

    @property
    def learner_seed(self) -> int:
        """See `DataPlan`."""
        return self.actions.seed

    @property
    def settings(self) -> SFTConfig:
        """The actions' settings with the steps of both."""
        return self.actions.settings.model_copy(update={"steps": self.language.steps + self.actions.settings.steps})

    def build(self, device: str) -> Parts:
        """See `DataPlan`."""
        return sft_parts(self.actions, self.start(), read_episodes(self.actions.demos), device)

    def feeds(self, parts: Parts) -> dict[str, DataFeed]:
        """See `DataPlan`."""
        processor = vlm_processor(parts.model.config, load_tokenizer())
        data = conversation_data([Source(self.solutions)], self.language, self.actions.seed, processor)
        text = conversation_objective(data, self.language, self.actions.seed, parts.model)
        return {
            LANGUAGE: DataFeed(text, data, self.language),
            ACTIONS: DataFeed(parts.objective, parts.data, self.actions.settings),
        }

    def start(self) -> Start:
        """The policy that imitation begins with; random weights are fitted to pictures and numbers."""
        plan = self.actions
        start = starting_policy(plan.model, plan.seed, plan.stride)
        if plan.model.path is None:
            processor = vlm_processor(start.policy.config, load_tokenizer())
            calibrate(LanguageModel(start.policy, processor, start.info), [Source(self.solutions)])
        return start
