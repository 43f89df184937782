"""The steps of a run of GRPO with a curriculum; see `online_steps`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rl_lab.language.online_steps import OnlineMethod, OnlineSteps, StepsState
from rl_lab.records.types import Sampling
from rl_lab.runner.stage_context import StageContext
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout_learner import LearnerHandle


class GRPOSteps(OnlineSteps):
    """Pool, rollouts and learner at the last checkpoint; `step()` brings them one step on."""

    def __init__(
        self,
        context: StageContext,
        policy: Path,
        engines: WorkerPool,
        learner: LearnerHandle,
        state: StepsState,
        *,
        scheme: str,
        seed: int,
    ) -> None:
        """See `OnlineSteps`; `scheme` is one of the curriculum's."""
        settings, options = context.config.rl, context.config.grpo
        method = OnlineMethod(
            section="rl",
            steps=settings.steps,
            sampling=Sampling(
                options.max_completion_length,
                temperature=options.temperature,
                num_generations=options.num_generations,
            ),
            curriculum=replace(context.config.curriculum, scheme=scheme),
            scale_rewards=options.scale_rewards,
            max_refills=settings.max_refills,
            staleness=settings.staleness,
            mismatch_limit=settings.mismatch_limit,
        )
        super().__init__(context, policy, engines, learner, state, method, seed=seed)
