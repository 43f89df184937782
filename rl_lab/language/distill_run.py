"""On-policy distillation: a run that learns from the student's own answers towards a teacher; see `online_run`."""

from __future__ import annotations

from pathlib import Path

from algos.curriculum_options import CurriculumOptions
from rl_lab.config.distill import DistillConfig
from rl_lab.language.grpo_state import RunState
from rl_lab.language.online_run import OnlineRun
from rl_lab.language.online_steps import OnlineMethod, OnlineSteps, TeacherReads
from rl_lab.records.types import Sampling
from rl_lab.runner.stage_context import StageContext
from rl_lab.seeding import integer
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout_learner import LearnerHandle


def distill_method(settings: DistillConfig, scale_rewards: str) -> OnlineMethod:
    """Questions in even draws, all answers learned from, whatever they are worth."""
    return OnlineMethod(
        section="distill",
        steps=settings.steps,
        sampling=Sampling(
            settings.max_completion_length,
            temperature=settings.temperature,
            num_generations=settings.num_generations,
        ),
        curriculum=CurriculumOptions(batch_size=settings.batch_size, scheme="uniform"),
        scale_rewards=scale_rewards,
        max_refills=0,
        staleness=settings.staleness,
        mismatch_limit=settings.mismatch_limit,
        needs_rewards=False,
    )


class DistillRun(OnlineRun):
    """One run of on-policy distillation."""

    def __init__(
        self,
        context: StageContext,
        policy: Path,
        engines: WorkerPool,
        learner: LearnerHandle,
        state: RunState,
        teacher: TeacherReads | None = None,
    ) -> None:
        """`learner` stands at the state's checkpoint. `teacher` None: it lies beside the student in the learner."""
        settings = context.config.distill
        seed = integer(context.seed, "distill", *context.node.stream, settings.replicate)
        method = distill_method(settings, context.config.grpo.scale_rewards)
        steps = OnlineSteps(context, policy, engines, learner, state, method, seed=seed, teacher=teacher)
        super().__init__(context, steps, state, settings.examine_every, seed)
