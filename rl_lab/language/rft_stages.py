"""The stages of rejection-sampling fine-tuning: sample traces and choose from them, and train on what was kept."""

from __future__ import annotations

from functools import partial

import ray

from rewards.reasoning import ReasoningJudge
from rl_lab.language.engines import engines, policy_folder
from rl_lab.language.grpo_line import Clock
from rl_lab.language.grpo_rollouts import Questioner
from rl_lab.language.item_files import ItemFile
from rl_lab.language.model import load_chat_processor
from rl_lab.language.reward_models import make_rewards
from rl_lab.language.rft_training import RFTPlan, write_index
from rl_lab.language.trace_judge import TraceJudge
from rl_lab.language.traces import TraceSampler, select_traces
from rl_lab.language.trl_stages import trl_rft
from rl_lab.learning.checkpoint import published
from rl_lab.learning.stage import train
from rl_lab.records.types import Sampling
from rl_lab.runner.stage_context import Stage, StageContext
from rl_lab.seeding import integer
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout_learner import Weights

POOL_FILE = "train.arrow"
INDEX_FILE = "kept.arrow"


class RFTStages:
    """The stage functions of one run, by kind; they share its cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def functions(self) -> dict[str, Stage]:
        """Stage functions by node kind."""
        return {"traces": self.traces, "rft": self.rft}

    def traces(self, context: StageContext) -> None:
        """Traces of the policy for the questions of the pool, and which of them are kept."""
        with engines(self.cluster, context) as pool:
            num_steps = sample(context, pool)
        settings, config = context.config.traces, context.config.rewards.judge
        judge = None
        if settings.select.min_judge_score is not None:
            judge = TraceJudge(ReasoningJudge(config), ItemFile(context.inputs["questions"] / POOL_FILE))
        summary = select_traces(context, settings.select, judge, num_steps + 1)
        if not summary.kept:
            context.say(f"none of {summary.candidates} traces was kept: {summary.dropped}")

    def rft(self, context: StageContext) -> None:
        """Cross-entropy on the kept traces, in the Learner or with TRL."""
        settings = context.config.rft
        pool_file, index = context.inputs["questions"] / POOL_FILE, context.scratch / INDEX_FILE
        if not index.exists():
            write_index(context.inputs["traces"], ItemFile(pool_file), index)
        plan = RFTPlan(policy_folder(context), settings, index, pool_file, stage_seed(context, "rft"))
        (trl_rft if settings.backend == "trl" else partial(train, self.cluster))(context, plan)


def stage_seed(context: StageContext, name: str) -> int:
    """Of the run and the node's own random stream."""
    return integer(context.seed, name, *context.node.stream)


def sample(context: StageContext, pool: WorkerPool) -> int:
    """All traces of a stage into its rollout store; the number of its last step there."""
    settings, policy = context.config.traces, policy_folder(context)
    rewards, snapshot = make_rewards(context.config.rewards), published(policy)
    questioner = Questioner(
        ItemFile(context.inputs["questions"] / POOL_FILE),
        pool,
        load_chat_processor(policy),
        rewards,
        Sampling(settings.max_tokens, temperature=settings.temperature, num_generations=settings.samples),
        context.config.engine.prompts_per_call,
        Clock(),
        context.check_stop,
    )
    weights = Weights(snapshot.version, ray.put(snapshot))
    sampler = TraceSampler(context, settings, questioner, weights, stage_seed(context, "traces"))
    try:
        sampler.run()
    finally:
        rewards.close()
    return sampler.plan.num_steps
