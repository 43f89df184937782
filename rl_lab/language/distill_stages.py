"""The stages of on-policy distillation: the student's, and the control that imitates the teacher."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from algos.grpo_options import GRPOOptions
from rl_lab.config.distill import DistillConfig
from rl_lab.language.distill_run import DistillRun
from rl_lab.language.distill_training import DistillPlan, ImitatePlan
from rl_lab.language.engines import engines, policy_folder
from rl_lab.language.grpo_state import RunState
from rl_lab.language.imitate_run import ImitateRun, ImitateState
from rl_lab.language.model import load_chat_processor
from rl_lab.language.teacher import TeacherEngines, teacher_engines
from rl_lab.language.teacher_checks import check_same_patches, check_same_text
from rl_lab.learning.stage import with_learner
from rl_lab.runner.stage_context import Stage, StageContext
from rl_lab.seeding import integer
from rl_lab.workers.cluster import Cluster


def reward_options(options: GRPOOptions, settings: DistillConfig) -> GRPOOptions | None:
    """Of the GRPO loss beside a divergence, None for none: the run's, on answers as distillation samples them."""
    if not settings.reward_weight:
        return None
    return replace(
        options,
        num_generations=settings.num_generations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        num_iterations=1,
    )


class DistillStages:
    """The stage functions of one run, by kind; they share its cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def functions(self) -> dict[str, Stage]:
        """Stage functions by node kind."""
        return {"distill": self.distill, "imitate": self.imitate}

    def distill(self, context: StageContext) -> None:
        """The student answers, the teacher reads, the student learns."""
        config, settings = context.config, context.config.distill
        policy, teacher = policy_folder(context), context.inputs["teacher"]
        student, reader = load_chat_processor(policy), load_chat_processor(teacher)
        check_same_text(student, reader, "the teacher")
        beside = settings.scored_by == "learner"
        if beside:
            check_same_patches(student, reader)
        seed = integer(context.seed, "distill", *context.node.stream, settings.replicate)
        rewards = reward_options(config.grpo, settings)
        plan = DistillPlan(policy, teacher if beside else None, settings, rewards, seed)
        with ExitStack() as stack:
            pool = stack.enter_context(engines(self.cluster, context))
            reads: TeacherEngines | None = None
            if not beside:
                reads = stack.enter_context(teacher_engines(self.cluster, context, teacher, settings.top_k))
            with_learner(
                self.cluster,
                context,
                plan,
                lambda: RunState(context.out, context.scratch, context.say),
                lambda learner, state: DistillRun(context, policy, pool, learner, state, reads).run(),
                (pool,),
            )

    def imitate(self, context: StageContext) -> None:
        """Cross-entropy on the teacher's answers."""
        policy, settings = policy_folder(context), context.config.imitate
        seed = integer(context.seed, "imitate", *context.node.stream, settings.replicate)
        plan = ImitatePlan(policy, settings, seed)

        with engines(self.cluster, context) as pool:
            with_learner(
                self.cluster,
                context,
                plan,
                lambda: ImitateState(context.out, context.scratch, context.say),
                lambda learner, state: ImitateRun(context, policy, pool, learner, state).run(),
                (pool,),
            )
