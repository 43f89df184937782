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

    name = "distill"

    def objective(self, device: str) -> Any:
        """Divergence to the teacher, with GRPO's loss where rewards count."""
        groups, rewards = self.settings.train, self.rewards
        teacher = None if self.teacher is None else frozen_model(self.teacher, device)
        distillation = Distillation(self.settings, groups=groups, teacher=teacher)
        if rewards is None:
            return distillation
        reference = frozen_model(self.policy, device) if rewards.beta else None
        return RewardedDistillation(
            distillation, GRPO(rewards, groups=groups, reference=reference), self.settings.reward_weight
        )

    def training(self, device: str) -> StudentTraining:
        """See `rl_lab.learner.plans.Plan`."""
        return StudentTraining(self, device)


@dataclass(frozen=True)
class ImitatePlan:
    """Cross-entropy on answers of a teacher, from a trained model."""

    policy: Path
    settings: ImitateConfig
    seed: int

    name = "imitate"

    def objective(self, device: str) -> Any:
        """Cross-entropy on the tokens of given answers."""
        return CrossEntropy(groups=self.settings.train)

    def training(self, device: str) -> StudentTraining:
        """See `rl_lab.learner.plans.Plan`."""
        return StudentTraining(self, device)


class StudentTraining(OnlineTraining):
    """The objective of a plan on answers, whatever they are worth."""

    needs_rewards = False

    def __init__(self, plan: DistillPlan | ImitatePlan, device: str = "cpu") -> None:
        super().__init__(plan.policy, plan.settings, plan.settings.train, plan.seed, device)
        self.plan = plan
        self.learner.add(plan.name, plan.objective(device), optimiser(plan.settings))

    def learn(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One optimizer step on a batch. ValueError where the teacher's part of it is missing."""
        batch = self.batch(groups)
        scores = [answer.teacher for answer in all_completions(groups) if answer.teacher is not None]
        if scores:
            batch = with_teacher(batch, scores).to(self.device)
        return self.learner.step(self.plan.name, batch, self.plan.settings.rows_at_once)


def with_teacher(batch: RolloutBatch, scores: Sequence[TopScores]) -> ScoredRolloutBatch:
    """The batch, a row for each answer, with what the teacher says about them."""
    shape = (*batch.input_ids.shape, scores[0].tokens.shape[1])
    tokens = torch.zeros(shape, dtype=torch.long)
    logprobs = torch.zeros(shape)
    tokens[batch.completion_mask] = torch.cat([torch.from_numpy(score.tokens).long() for score in scores])
    logprobs[batch.completion_mask] = torch.cat([torch.from_numpy(score.logprobs) for score in scores])
    known = {name: getattr(batch, name) for name in RolloutBatch.__dataclass_fields__}
    return ScoredRolloutBatch(**known, teacher_tokens=tokens, teacher_logprobs=logprobs)
