"""The stages of joint training: a policy with both skills to begin with, and an arm of the comparison."""

from __future__ import annotations

from rl_lab.graph.stage import StageContext
from rl_lab.learner.actions import SFTPlan
from rl_lab.learner.joint import JointPlan
from rl_lab.learner.warm_start import WarmStartPlan
from rl_lab.rollouts.answering import engines, policy_folder
from rl_lab.seeding import integer
from rl_lab.training.dataset import train, with_learner
from rl_lab.training.interleaved import JointRun
from rl_lab.training.state import JointState
from rl_lab.workers.cluster import Cluster


def warm_start(cluster: Cluster, context: StageContext) -> None:
    """Imitation of worked solutions and of demonstrations, interleaved."""
    config, inputs = context.config, context.inputs
    actions = SFTPlan(config.model, config.sft, inputs["demos"], config.demos.stride, context.seed)
    plan = WarmStartPlan(actions, config.cold_start, inputs["questions"] / "cold_start.arrow")
    train(cluster, context, plan)


def joint(cluster: Cluster, context: StageContext) -> None:
    """One arm in a learner process; if that dies, it goes on from the last checkpoint."""
    plan, policy = _plan(context), policy_folder(context)
    with cluster.simulation_pool(context.say) as simulations, engines(cluster, context) as answering:
        with_learner(
            cluster,
            context,
            plan,
            lambda: JointState(context.out, context.scratch, context.say),
            lambda learner, state: JointRun(context, policy, answering, simulations, learner, state).run(),
            (answering, simulations),
        )


def _plan(context: StageContext) -> JointPlan:
    config, arm = context.config, context.node.params["arm"]
    return JointPlan(
        policy=policy_folder(context),
        demos=context.inputs["demos"],
        stride=config.demos.stride,
        parts=(arm.removesuffix("_alone"),) if arm.endswith("_alone") else ("grpo", "rpro"),
        grpo=config.grpo,
        rl=config.rl,
        rpro=context.objective,
        optimise=config.optimise,
        buffers=config.buffers,
        rounds=config.joint.rounds,
        cosine_every=config.joint.cosine_every,
        seed=integer(context.seed, "joint"),
    )
