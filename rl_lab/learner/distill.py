"""Training on answers that a teacher has a say in: on-policy distillation, and its control, which imitates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from algos.batch import RolloutBatch, ScoredRolloutBatch
from algos.cross_entropy import CrossEntropy
from algos.distillation import Distillation, RewardedDistillation
from algos.grpo import GRPO, GRPOOptions
from rl_lab.config.language import DistillConfig, ImitateConfig
from rl_lab.learner.language import OnlineTraining, frozen_model
from rl_lab.learner.plans import optimiser
from rl_lab.records.types import RolloutGroup, TopScores, all_completions


@dataclass(frozen=True)
class DistillPlan:
    """On-policy distillation of a trained model."""

    policy: Path
    teacher: Path | None
    """Checkpoint of the teacher that lies beside the student; None: engines hold it, and groups bring what it says."""
    settings: DistillConfig
    rewards: GRPOOptions | None
    """Of the GRPO loss that is added with `distill.reward_weight`; None: none is."""
    seed: int

    def training(self, device: str) -> DistillTraining:
        """See `rl_lab.learner.plans.Plan`."""
        return DistillTraining(self, device)


class DistillTraining(OnlineTraining):
    """Divergence to the teacher on the student's answers, with GRPO's loss on them where rewards count."""

    needs_rewards = False

    def __init__(self, plan: DistillPlan, device: str = "cpu") -> None:
        settings = plan.settings
        super().__init__(plan.policy, settings, settings.train, plan.seed, device)
        self.plan = plan
        teacher = None if plan.teacher is None else frozen_model(plan.teacher, device)
        objective: Any = Distillation(settings, groups=settings.train, teacher=teacher)
        if plan.rewards is not None:
            reference = frozen_model(plan.policy, device) if plan.rewards.beta else None
            grpo = GRPO(plan.rewards, groups=settings.train, reference=reference)
            objective = RewardedDistillation(objective, grpo, settings.reward_weight)
        self.learner.add("distill", objective, optimiser(settings))

    def learn(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One optimizer step on a batch. ValueError where the teacher's part of it is missing."""
        batch = self.batch(groups)
        scores = [answer.teacher for answer in all_completions(groups) if answer.teacher is not None]
        if scores:
            batch = with_teacher(batch, scores).to(self.device)
        return self.learner.step("distill", batch, self.plan.settings.rows_at_once)


def with_teacher(batch: RolloutBatch, scores: Sequence[TopScores]) -> ScoredRolloutBatch:
    """The batch, a row for each answer, with what the teacher says about them."""
    shape = (*batch.input_ids.shape, scores[0].tokens.shape[1])
    tokens = torch.zeros(shape, dtype=torch.long)
    logprobs = torch.zeros(shape)
    tokens[batch.completion_mask] = torch.cat([torch.from_numpy(score.tokens).long() for score in scores])
    logprobs[batch.completion_mask] = torch.cat([torch.from_numpy(score.logprobs) for score in scores])
    known = {name: getattr(batch, name) for name in RolloutBatch.__dataclass_fields__}
    return ScoredRolloutBatch(**known, teacher_tokens=tokens, teacher_logprobs=logprobs)


@dataclass(frozen=True)
class ImitatePlan:
    """Cross-entropy on answers of a teacher, from a trained model."""

    policy: Path
    settings: ImitateConfig
    seed: int

    def training(self, device: str) -> ImitateTraining:
        """See `rl_lab.learner.plans.Plan`."""
        return ImitateTraining(self, device)


class ImitateTraining(OnlineTraining):
    """Cross-entropy on the tokens of given answers."""

    needs_rewards = False

    def __init__(self, plan: ImitatePlan, device: str = "cpu") -> None:
        settings = plan.settings
        super().__init__(plan.policy, settings, settings.train, plan.seed, device)
        self.plan = plan
        self.learner.add("imitate", CrossEntropy(groups=settings.train), optimiser(settings))

    def learn(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One optimizer step on a batch."""
        return self.learner.step("imitate", self.batch(groups), self.plan.settings.rows_at_once)
