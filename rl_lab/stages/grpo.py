"""GRPO with a curriculum: a run of steps with its examinations and checkpoints; see `rl_lab.training.online`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from algos.alarms import signal_alarm
from algos.curriculum.curriculum import Curriculum
from algos.curriculum.options import CurriculumOptions
from envs.spatial_qa.items import CATEGORIES
from rl_lab.common.seeding import integer
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node
from rl_lab.graph.stage import StageContext
from rl_lab.learner.language import GRPOPlan
from rl_lab.learner.plans import optimiser
from rl_lab.model.checkpoint import Snapshot, load_chat_processor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import with_token_texts
from rl_lab.records.types import Completion, Prompt, group_rewards, num_tokens
from rl_lab.rollouts.answering import (
    RewardFailures,
    ask,
    collect,
    engines,
    make_rewards,
    policy_folder,
    reward_means,
    training_sampling,
    with_advantages,
    with_rewards,
)
from rl_lab.stages.base import BASE_MODEL, ENGINES, TrainingKind, logged, run_online
from rl_lab.training.online import OnlineRun, OnlineSteps, group_spread, grpo_method
from rl_lab.training.state import RunState
from rl_lab.training.watch import Watch, nothing_learned
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.learner import LearnerHandle
from rl_lab.workers.pool import WorkerPool

SHOWN_STEPS = 10
"""Whose mean reward is said when the stage has ended."""


class GRPOKind(TrainingKind):
    """Reinforcement learning on groups of answers, whose items a curriculum chooses."""

    name = "grpo"
    named_in = ("stages", "repeat", "branch")
    after = ("questions",)
    start = BASE_MODEL
    reads = ("model", "engine", "grpo", "rl", "curriculum", "rewards", "truth", "examine")
    workers = ENGINES
    folder = "grpo"
    is_live = examines = True
    section = "rl"
    seconds_per_row = 0.012

    def expand(self, graph: Expansion, step: Step) -> None:
        """The next model of a chain, or the one model of a run."""
        if graph.is_chain:
            graph.extend(step, {}, graph.head)
            return
        scheme = graph.config.curriculum.scheme
        inputs, labels = {"questions": "questions"} | graph.base.inputs(), {"method": scheme}
        trained = graph.add(f"{scheme}.1.grpo", "grpo", inputs, **labels).name
        if "examine" in graph.names:
            graph.add(f"{scheme}.1.examine", "examine", inputs | {"policy": trained}, **labels)

    def params(self, config: RunConfig) -> dict[str, Any]:
        """Without the code of schemes that it does not use."""
        curriculum = config.curriculum.with_scheme(config.curriculum.scheme)
        return super().params(config.model_copy(update={"curriculum": curriculum}))

    def answer_length(self, config: RunConfig) -> int:
        """As configured."""
        return config.grpo.max_completion_length

    def rows(self, node: Node, config: RunConfig) -> float:
        """Answers of a batch."""
        return config.curriculum.batch_size * config.grpo.num_generations

    def finding(self, out: Path) -> str:
        """The mean reward of the first and of the last steps."""
        rewards = logged(out, "reward/mean")
        steps = min(SHOWN_STEPS, len(rewards))
        first, last = (f"{np.mean(part):.3f}" for part in (rewards[:steps], rewards[-steps:])) if steps else ("", "")
        return f"reward {first} in the first {steps} steps, {last} in the last" if steps else ""

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Reinforcement learning in a learner process; if that dies, it goes on from the last checkpoint."""
        config, policy = context.config, policy_folder(context)
        if config.rl.backend == "trl":
            with engines(cluster, context) as pool:
                trl_grpo(context, policy, pool)
            return
        seed, questions = context.own_seed("grpo"), context.inputs["questions"] / "train.arrow"
        plan = GRPOPlan(policy, config.grpo, config.rl, seed, questions)
        with engines(cluster, context) as pool:
            run_online(cluster, context, plan, partial(GRPORun, context, policy, pool), pool)


class GRPORun(OnlineRun):
    """One run of GRPO."""

    def __init__(
        self, context: StageContext, policy: Path, engines: WorkerPool, learner: LearnerHandle, state: RunState
    ) -> None:
        """`learner` stands at the state's checkpoint; `policy` is the checkpoint folder that the run began with."""
        seed = context.own_seed("grpo")
        method = grpo_method(context.config)
        steps = OnlineSteps(context, policy, engines, learner, state, method, seed=seed)
        super().__init__(
            context, "grpo", steps, learner, state, context.config.rl, seed=seed, truth=context.config.truth
        )


def fixed_order(options: CurriculumOptions, seed: int, categories: np.ndarray, steps: int) -> list[np.ndarray]:
    """Items of every step, as the curriculum selects them if it never hears of a result."""
    curriculum = Curriculum(options, seed, len(CATEGORIES))
    curriculum.add(categories)
    order = []
    for step in range(1, steps + 1):
        order.append(curriculum.select(step, 0).numbers)
        curriculum.release(order[-1])
    return order


class TRLRun:
    """GRPO by TRL's `GRPOTrainer` on a fixed order of items, with answers from the run's engines."""

    def __init__(self, context: StageContext, policy: Path, engines: WorkerPool) -> None:
        config = context.config
        self.context, self.policy, self.engines = context, policy, engines
        self.options, self.settings = config.grpo, config.rl
        self.seed = context.own_seed("grpo")
        self.items = ItemFile(context.inputs["questions"] / "train.arrow")
        codes = [CATEGORIES.index(self.items.record(row)["category"]) for row in range(len(self.items))]
        self.order = fixed_order(config.curriculum, self.seed, np.array(codes, np.uint8), self.settings.steps)
        self.processor = load_chat_processor(policy)
        self.store = RolloutStore(context.out)
        self.step = 0

    def roll_out(self, prompts: Sequence[Prompt], snapshot: Snapshot) -> list[list[Completion]]:
        """Answers to the items of the next step, drawn with the seeds that the Learner's run would use."""
        self.step += 1
        numbers = self.order[self.step - 1].tolist()
        seeds = [integer(self.seed, "draw", self.step, 0, number) for number in numbers]
        seeded = [replace(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        per_call = self.context.config.engine.prompts_per_call
        asked = ask(self.engines, seeded, training_sampling(self.options), ray.put(snapshot), per_call)
        return collect(self.engines, asked, self.context.check_stop)[0]

    def run(self) -> None:
        """Train to the end."""
        from rl_lab.trl_backend.grpo import Generation, notice, train_grpo  # here, because it imports TRL
        from rl_lab.trl_backend.trainer import Settings

        self.context.say(notice(self.context.config.curriculum.scheme))
        torch.set_num_threads(self.settings.threads)
        means: dict[str, float] = {}
        failures, watch = RewardFailures(self.context), Watch(self.context)

        def record(step: Generation) -> None:
            groups, first_failures = with_rewards(step.groups, step.breakdown)
            failures.check(step.number, groups, first_failures)
            groups = with_advantages(groups, self.options.scale_rewards)
            self.store.write(step.number, with_token_texts(groups, self.processor))
            means.clear()
            means.update(reward_means(groups) | {"rollouts/tokens": float(num_tokens(groups))})
            means["rollouts/spread"] = group_spread(group_rewards(groups))

        def log(step: int, metrics: dict[str, float]) -> None:
            self.context.log(step, **(metrics | means))
            watch.add(metrics | means)
            watch.look(step, nothing_learned(self.settings.steps))
            self.context.progress(step, self.settings.steps)

        rewards = make_rewards(self.context.config.rewards)
        try:
            train_grpo(
                self.policy,
                [[self.items[number] for number in numbers.tolist()] for numbers in self.order],
                self.options,
                Settings(
                    optimiser(self.settings, self.options.num_iterations),
                    self.settings.train,
                    self.settings.gradient_checkpointing,
                ),
                self.roll_out,
                rewards,
                self.context.out,
                log,
                record,
            )
            watch.look(self.settings.steps, signal_alarm)
        finally:
            rewards.close()


def trl_grpo(context: StageContext, policy: Path, engines: WorkerPool) -> None:
    """Reinforcement learning by TRL; see `TRLRun`."""
    TRLRun(context, policy, engines).run()
