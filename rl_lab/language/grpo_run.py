"""GRPO with a curriculum: a run of steps with its examinations and checkpoints; see `online_run`."""

from __future__ import annotations

from pathlib import Path

from rl_lab.language.grpo_state import RunState
from rl_lab.language.grpo_steps import GRPOSteps
from rl_lab.language.online_run import OnlineRun
from rl_lab.runner.stage_context import StageContext
from rl_lab.seeding import integer
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout_learner import LearnerHandle


class GRPORun(OnlineRun):
    """One run of GRPO."""

    def __init__(
        self, context: StageContext, policy: Path, engines: WorkerPool, learner: LearnerHandle, state: RunState
    ) -> None:
        """`learner` stands at the state's checkpoint; `policy` is the checkpoint folder that the run began with."""
        seed = integer(context.seed, "grpo", *context.node.stream)
        scheme = context.node.params["curriculum"]["scheme"]
        steps = GRPOSteps(context, policy, engines, learner, state, scheme=scheme, seed=seed)
        super().__init__(context, steps, state, context.config.rl.examine_every, seed)
