"""GRPO with a curriculum: the driver of pool, engines, rewards and learner, one batch of groups after the other.

    select items -> engines answer -> rewards -> observe -> (replace groups without signal) -> learn -> publish weights

With a staleness s > 0 the batches of the next s steps are answered while the learner trains, by weights that are s
versions behind when their turn comes. The schedule is fixed, so the result does not depend on who is fast.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from algos.grpo import group_advantages
from envs.spatial_qa.items import CATEGORIES
from rewards.compose import Rewards
from rl_lab.language.grpo_exam import HeldOutExam
from rl_lab.language.grpo_line import Clock, pool_line, reward_line, rollout_line
from rl_lab.language.grpo_rollouts import Questioner, RolloutRun, StepRollouts
from rl_lab.language.grpo_state import RunState
from rl_lab.language.item_files import ItemFile
from rl_lab.language.model import load_chat_processor
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.language.training import Groups
from rl_lab.pool.store import PoolItem, PoolStore
from rl_lab.runner.stage_context import StageContext
from rl_lab.seeding import integer
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout import Sampling
from rl_lab.workers.rollout_learner import Learned, Weights
from rl_lab.workers.weights import Snapshot

BAD_BATCH_FILE = "bad_batch.pt"
SHOWN = ("prompt", "answer", "difficulty", "scene", "seed")
"""Of an item's record, what the pool keeps for those who look at it."""


class Learning(Protocol):
    """What the driver asks of the learner; `rl_lab.workers.rollout_learner.LearnerHandle` is the real one."""

    def publish(self) -> Weights:
        """The weights of the moment."""

    def learn(self, groups: Groups, bad_batch: Path) -> tuple[Learned, Weights]:
        """Learn from a batch; what that gave and the weights after it."""

    def save(self, path: Path) -> None:
        """Save the state to continue from."""

    def finish(self, folder: Path) -> None:
        """Write the trained model's checkpoint files."""

    def snapshot(self, weights: Weights) -> Snapshot:
        """Published weights themselves."""

    def share(self, snapshot: Snapshot) -> Weights:
        """Weights from a file, for the engines."""


def create_pool(context: StageContext, items: ItemFile, seed: int, path: Path) -> PoolStore:
    """A new pool with all questions of the training set, unseen, and the scheme of the node."""
    records = (items.record(row) for row in range(len(items)))
    pool_items = (
        PoolItem(
            record["id"],
            record["category"],
            record["task"],
            record["reward_type"],
            {name: record[name] for name in SHOWN},
        )
        for record in records
    )
    options = replace(context.config.curriculum, scheme=context.node.params["curriculum"]["scheme"])
    return PoolStore.create(path, options, seed, CATEGORIES, pool_items)


class GRPORun:
    """One run: `run()` brings it from its last checkpoint to its end."""

    def __init__(self, context: StageContext, policy: Path, engines: WorkerPool, learner: Learning) -> None:
        """`learner` stands at the last checkpoint; `policy` is the checkpoint folder that the run began with."""
        config = context.config
        self.context, self.engines, self.learner = context, engines, learner
        self.settings, self.options = config.rl, config.grpo
        self.clock, self.rewards = Clock(), Rewards(config.rewards)
        self.weights = learner.publish()
        self.store = RolloutStore(context.out)
        self.state = RunState(context.out, context.scratch, context.say)
        seed = integer(context.seed, "grpo", *context.node.stream)
        items = ItemFile(context.inputs["questions"] / "train.arrow")
        self.pool = self.state.open_pool(lambda path: create_pool(context, items, seed, path))
        self.rollouts = self._rollouts(items, policy, seed)
        self.exam = HeldOutExam(
            ItemFile(context.inputs["questions"] / "held_out.arrow"),
            self.rollouts.questioner.processor,
            self.rewards,
            config.examine,
            seed=seed,
            prompts_per_call=4 * config.engine.prompts_per_call,
            out=context.out,
        )

    def _rollouts(self, items: ItemFile, policy: Path, seed: int) -> RolloutRun:
        sampling = Sampling(
            self.options.max_completion_length,
            temperature=self.options.temperature,
            num_generations=self.options.num_generations,
        )
        questioner = Questioner(
            items,
            self.engines,
            load_chat_processor(policy),
            self.rewards,
            sampling,
            self.context.config.engine.prompts_per_call,
            self.clock,
            self.context.check_stop,
        )
        return RolloutRun(
            self.pool,
            self.store,
            questioner,
            max_refills=self.settings.max_refills,
            seed=seed,
            saved_weights=lambda version: self.learner.share(self.state.weights(version)),
        )

    def run(self) -> None:
        """Learn from batch after batch. RuntimeError when trainer and engines disagree by more than the limit, and when
        the loss is not a number."""
        progress, steps = self.state.progress, self.settings.steps
        every = self.context.checkpoint_every(steps)
        self.context.resume_from(progress.step if progress.step else -1)
        self.state.forget_later()
        try:
            if progress.step == 0:
                self.context.log(0, **self._examine(), weight_version=self.weights.version)
            while progress.batches < steps:
                before = progress.batches
                self._step(progress.step + 1)
                self.context.progress(progress.batches, steps, f"version {self.weights.version}")
                if progress.batches > before and progress.batches % every == 0:
                    self._save()
            self.learner.finish(self.context.out)
            self.pool.seal()
        finally:
            self.rewards.close()
            self.pool.close()

    def _step(self, step: int) -> None:
        """One selection: answer, score, observe, and learn from it if it is for learning."""
        self.clock.begin()
        progress = self.state.progress
        issued = self.rollouts.issued(step, self.weights)
        progress.step = step
        if not len(issued.numbers):
            return  # a probe of stage mode waits for results that are still out
        found = self.rollouts.finish(issued, self.weights)
        answered = found.answered
        advantages = group_advantages(torch.from_numpy(answered.scored.rewards), self.options.scale_rewards)
        if step not in self.store.steps():
            rows = answered.rollouts(advantages, self.rollouts.questioner.processor)
            self.store.write(step, rows, answered.columns())
        progress.tokens += answered.num_tokens
        progress.batches += issued.trains
        ahead = min(self.settings.staleness, self.settings.steps - progress.batches)
        self.rollouts.issue_ahead(range(step + 1, step + 1 + ahead), self.weights)
        line = self._describe(found)
        if issued.trains:
            line |= self._learn(found, advantages)
            line |= self._examine_if_due()
        line |= self.clock.line(self.engines.num_workers) | {"weight_version": float(self.weights.version)}
        self.context.log(step, **line)
        self._check_mismatch(step, line)

    def _describe(self, found: StepRollouts) -> dict[str, float]:
        """What the step's rollouts were like, and what the pool is like after them."""
        answered = found.answered
        line = reward_line(answered) | pool_line(self.pool.curriculum.band_counts, found.observations)
        line |= rollout_line(answered, found.signal, len(found.rounds[0].items), self.weights.version)
        return line | {"rollouts/tokens_total": float(self.state.progress.tokens)}

    def _learn(self, found: StepRollouts, advantages: torch.Tensor) -> dict[str, float]:
        """Learn from the groups with signal, or from all where the scheme replaces none; the objective's metrics."""
        answered, replaces = found.answered, self.pool.curriculum.options.refills
        kept = np.flatnonzero(found.signal) if replaces else np.arange(len(answered.items))
        if np.isnan(answered.scored.rewards[kept]).all():
            return {}  # nothing to learn from, and weights that do not move
        groups = answered.select(kept).groups(advantages[kept])
        with self.clock.timed("learn"):
            learned, self.weights = self.learner.learn(groups, self.context.scratch / BAD_BATCH_FILE)
        if learned.error is not None:
            raise RuntimeError(learned.error)
        self.clock.add("publish", learned.publish_s)
        self.clock.add("learn", -learned.publish_s)
        return learned.metrics

    def _examine_if_due(self) -> dict[str, float]:
        every = self.settings.examine_every
        return self._examine() if every and self.state.progress.batches % every == 0 else {}

    def _examine(self) -> dict[str, float]:
        with self.clock.timed("examine"):
            return self.exam.examine(self.engines, self.weights, self.state.progress, self.context.check_stop)

    def _save(self) -> None:
        """Make this the state to continue from, with the older weights that steps to come were asked with."""
        older = {weights.version: weights for weights in self.rollouts.weights_ahead}
        older.pop(self.weights.version, None)  # the learner publishes these again
        snapshots = [self.learner.snapshot(weights) for weights in older.values()]
        self.state.save(self.pool, self.learner.save, snapshots)

    def _check_mismatch(self, step: int, line: dict[str, float]) -> None:
        found, limit = line.get("mismatch/newest", 0.0), self.settings.mismatch_limit
        if found > limit:
            raise RuntimeError(
                f"step {step}: log-probabilities of trainer and engine differ by {found:.3g} on average, more than "
                f"rl.mismatch_limit = {limit:g}; the engine computes another model, so gradients would be wrong"
            )
