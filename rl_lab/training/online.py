"""A run that learns from its own answers: its steps, one batch after another, with short examinations and checkpoints.

    select items -> engines answer -> rewards -> observe -> (replace groups without signal) -> (teacher reads them)
                 -> learn -> publish weights

With a staleness s > 0 the batches of the next s steps are answered while the learner trains, by weights that are s
versions behind when their turn comes. The schedule is fixed, so the result does not depend on who is fast. Each step
writes lines about rewards, pool, rollouts, seconds and idle shares; those of GRPO select by a curriculum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from algos.alarms import signal_alarm, truncation_alarm
from algos.curriculum.items import BANDS, Array, Observation
from algos.curriculum.options import CurriculumOptions
from envs.spatial_qa.items import CATEGORIES
from rewards.config import RewardConfig
from rewards.rubric import Rewards
from rl_lab.curriculum.store import PoolItem, PoolStore
from rl_lab.graph.stage import StageContext
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import Snapshot, load_chat_processor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import with_token_texts
from rl_lab.records.types import (
    RolloutGroup,
    Sampling,
    TopScores,
    all_completions,
    filled,
    group_rewards,
    group_versions,
    num_tokens,
)
from rl_lab.rollouts.answering import (
    RewardFailures,
    failure_metrics,
    make_rewards,
    reward_means,
    training_sampling,
    with_advantages,
)
from rl_lab.rollouts.clock import Clock
from rl_lab.rollouts.rollouter import Questioner, RolloutRun, StepRollouts
from rl_lab.training.evaluation import HeldOutExam
from rl_lab.training.loop import Feed, Line, TrainingLoop, Turn
from rl_lab.training.schedule import Schedule
from rl_lab.training.state import RunState
from rl_lab.training.watch import nothing_learned
from rl_lab.workers.learner import BAD_BATCH_FILE, LearnerHandle, Weights
from rl_lab.workers.pool import WorkerPool


class OnlineRun(TrainingLoop):
    """One run: `run()` brings it from its last checkpoint to its end."""

    last_alarms = (signal_alarm,)

    def __init__(
        self,
        context: StageContext,
        name: str,
        feed: AnswerFeed,
        learner: LearnerHandle,
        state: RunState,
        settings: Any,
        *,
        seed: int,
        truth: RewardConfig | None = None,
    ) -> None:
        """`settings`: `steps` batches, and an examination every `examine_every` of them, 0 for never.

        `truth`: what examinations are scored by, if not as the answers that are learned from.
        """
        super().__init__(context, learner, state, {name: feed}, Schedule({name: settings.steps}))
        self.examine_every = settings.examine_every
        self.alarms = (truncation_alarm, nothing_learned(settings.steps))
        self.truth = feed.rewards if truth is None else make_rewards(truth)
        self.exam = HeldOutExam(context, seed, feed.engines, feed.processor, self.truth, feed.failures)

    def is_due(self, *, is_last: bool) -> bool:
        """After so many batches."""
        return bool(self.examine_every) and self.done % self.examine_every == 0

    def examine(self) -> Line:
        """One answer to each held-out question."""
        return self.exam.examine(self.weights, self.progress)

    def close(self) -> None:
        """Let go of the rewards, too."""
        self.truth.close()
        super().close()


class AnswerFeed(Feed, Protocol):
    """A feed of answers."""

    engines: WorkerPool
    processor: HunYuanVLMoTProcessor
    rewards: Rewards
    failures: RewardFailures


@dataclass(frozen=True)
class OnlineMethod:
    """What tells one way of learning from one's own answers from another, as far as the driver is concerned."""

    section: str
    """Of the configuration, for messages."""
    steps: int
    """Batches to learn from."""
    sampling: Sampling
    curriculum: CurriculumOptions
    scale_rewards: str
    """See `algos.grpo.group_advantages`."""
    max_refills: int
    staleness: int
    mismatch_limit: float
    needs_rewards: bool = True
    """Answers without a reward, and groups without signal where the scheme replaces them, are not learned from."""


def grpo_method(config: Any) -> OnlineMethod:
    """As the sections `rl`, `grpo` and `curriculum` say."""
    settings, options = config.rl, config.grpo
    return OnlineMethod(
        section="rl",
        steps=settings.steps,
        sampling=training_sampling(options),
        curriculum=config.curriculum.with_scheme(config.curriculum.scheme),
        scale_rewards=options.scale_rewards,
        max_refills=settings.max_refills,
        staleness=settings.staleness,
        mismatch_limit=settings.mismatch_limit,
    )


class OnlineSteps(Feed):
    """The feed of answers of one's own: pool, rollouts and learner, which `turn()` brings one step on."""

    def __init__(
        self,
        context: StageContext,
        policy: Path,
        engines: WorkerPool,
        learner: LearnerHandle,
        state: RunState,
        method: OnlineMethod,
        *,
        seed: int,
        teacher: TeacherReads | None = None,
    ) -> None:
        """`learner` stands at the last checkpoint; `policy` is the checkpoint folder that the run began with."""
        self.context, self.engines, self.learner, self.state = context, engines, learner, state
        self.method, self.teacher = method, teacher
        self.failures = RewardFailures(context)
        self.clock, self.rewards = Clock(), make_rewards(context.config.rewards)
        self.store = RolloutStore(context.out)
        items = ItemFile(context.inputs["questions"] / "train.arrow")
        self.pool = state.open_pool(lambda path: create_pool(method.curriculum, items, seed, path))
        self.processor = load_chat_processor(policy)
        self.rollouts = self._rollouts(items, seed)

    def _rollouts(self, items: ItemFile, seed: int) -> RolloutRun:
        questioner = Questioner(
            items,
            self.engines,
            self.processor,
            self.rewards,
            self.method.sampling,
            self.context.config.engine.prompts_per_call,
            self.clock,
            self.context.check_stop,
        )
        return RolloutRun(
            items,
            self.pool,
            self.store,
            questioner,
            max_refills=self.method.max_refills,
            seed=seed,
            saved_weights=lambda version: self.learner.share(self.state.weights(version)),
        )

    def close(self) -> None:
        """Let go of rewards and pool."""
        self.rewards.close()
        self.pool.close()

    def older_weights(self, newest: Weights) -> list[Snapshot]:
        """Weights that steps to come were asked with, but for the newest, which the learner publishes again."""
        older = {weights.version: weights for weights in self.rollouts.weights_ahead}
        older.pop(newest.version, None)
        return [self.learner.snapshot(weights) for weights in older.values()]

    def _issue_ahead(self, weights: Weights) -> None:
        """Ask what the next steps will need, as far ahead as the staleness allows."""
        progress = self.state.progress
        ahead = min(self.method.staleness, self.method.steps - progress.batches)
        self.rollouts.issue_ahead(range(progress.step + 1, progress.step + 1 + ahead), weights)

    def turn(self, weights: Weights) -> Turn:
        """The next selection: answer, score, observe, and learn from it if it is for learning.

        UserError when rewards fail for good, RuntimeError when the loss is not a number.
        """
        self.clock.begin()
        progress = self.state.progress
        issued = self.rollouts.issued(progress.step + 1, weights)
        progress.step += 1
        if not len(issued.numbers):
            return Turn(None, weights, learned=False)  # a probe of stage mode waits for results that are still out
        found = self.rollouts.finish(issued, weights)
        self.failures.check(progress.step, found.groups, found.first_failures)
        groups = self._keep(with_advantages(found.groups, self.method.scale_rewards))
        progress.tokens += num_tokens(groups)
        progress.batches += issued.trains
        self._issue_ahead(weights)
        line = self._describe(found, weights.version)
        if issued.trains:
            metrics, weights = self._learn(groups, found.signal, weights)
            line |= metrics
        line |= self.clock.line(self.engines.num_workers) | {"weight_version": float(weights.version)}
        return Turn(line, weights, issued.trains)

    def _describe(self, found: StepRollouts, version: int) -> dict[str, float]:
        """What the step's rollouts were like, and what the pool is like after them."""
        groups = found.groups
        line = reward_line(groups) | pool_line(self.pool.curriculum.band_counts, found.observations)
        line |= rollout_line(groups, found.signal, len(found.rounds[0]), version)
        return line | {"rollouts/tokens_total": float(self.state.progress.tokens)}

    def _keep(self, groups: list[RolloutGroup]) -> list[RolloutGroup]:
        """Store the step's answers with what the teacher says about them, unless the store has both; they with it."""
        step = self.state.progress.step
        if step not in self.store.steps():
            columns: dict[str, list[Any]] = {}
            if self.teacher is not None:
                with self.clock.timed("teacher"):
                    columns = self.teacher.columns(groups, self.context.check_stop)
            self.store.write(step, with_token_texts(groups, self.processor), columns)
        if self.teacher is None:
            return groups
        rows = self.store.read(steps=[step], columns=self.teacher.names)
        return filled(groups, teacher=self.teacher.scores(rows))

    def _learn(self, groups: list[RolloutGroup], signal: Array, weights: Weights) -> tuple[dict[str, float], Weights]:
        """Learn from the groups with signal, or from all where the scheme replaces none; metrics and new weights."""
        if self.pool.curriculum.options.refills:
            groups = [group for group, kept in zip(groups, signal.tolist(), strict=True) if kept]
        if self.method.needs_rewards and all(one.reward is None for one in all_completions(groups)):
            return {"groups/with_signal": 0.0}, weights  # nothing to learn from, and weights that do not move
        with self.clock.timed("learn"):
            learned, weights = self.learner.learn(groups, self.context.scratch / BAD_BATCH_FILE)
        self.clock.add("publish", learned.publish_s)
        self.clock.add("learn", -learned.publish_s)
        return learned.metrics, weights

    def check(self, line: dict[str, Any]) -> None:
        """RuntimeError when the metrics of a turn say that trainer and engines compute different models."""
        found, limit = line.get("mismatch/newest", 0.0), self.method.mismatch_limit
        if not found <= limit:
            raise RuntimeError(
                f"step {self.state.progress.step}: log-probabilities of trainer and engine differ by {found:.3g} on "
                f"average, more than {self.method.section}.mismatch_limit = {limit:g}; the engine computes another "
                "model, so gradients would be wrong"
            )


class TeacherReads(Protocol):
    """Somebody who reads a step's answers before they are stored and learned from."""

    names: Sequence[str]
    """Of the columns."""

    def columns(self, groups: Sequence[RolloutGroup], check_stop: Callable[[], None]) -> dict[str, list[Any]]:
        """What to store beside each answer, in their order."""

    def scores(self, rows: Sequence[dict[str, Any]]) -> list[TopScores]:
        """What was stored, of rows of the store or of columns put together in rows."""


SHOWN = ("prompt", "answer", "difficulty", "scene", "seed")
"""Of an item's record, what the pool keeps for those who look at it."""


def create_pool(options: CurriculumOptions, items: ItemFile, seed: int, path: Path) -> PoolStore:
    """A new pool with all questions of the training set, unseen."""
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
    return PoolStore.create(path, options, seed, CATEGORIES, pool_items)


def reward_line(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Mean rewards by part, category and type, and counts of failed reward calls."""
    return reward_means(groups) | failure_metrics(groups)


def pool_line(band_counts: Array, observations: Sequence[Observation]) -> dict[str, float]:
    """`pool/BAND`: items in each band, of counts [C, 5]; `pool_flow/BAND>BAND`: items that moved in this step."""
    flow = np.sum([seen.flow() for seen in observations], axis=0)
    line = {f"pool/{band}": float(count) for band, count in zip(BANDS, band_counts.sum(0), strict=True)}
    moved = [(i, j) for i, j in np.argwhere(flow).tolist() if i != j]
    return line | {f"pool_flow/{BANDS[i]}>{BANDS[j]}": float(flow[i, j]) for i, j in moved}


def rollout_line(groups: Sequence[RolloutGroup], signal: Array, num_first: int, version: int) -> dict[str, float]:
    """`rollouts/..` of a step whose first round asked `num_first` items, with weights of `version` at the learner."""
    return {
        "rollouts/groups": float(len(groups)),
        "rollouts/refilled": float(len(groups) - num_first),
        "rollouts/signal": float(signal.mean()),
        "rollouts/spread": group_spread(group_rewards(groups)),
        **length_line(groups),
        "rollouts/staleness": float(np.mean(version - group_versions(groups))),
    }


def length_line(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Tokens, their number a completion, and the share of completions that were cut off."""
    flat, tokens = all_completions(groups), num_tokens(groups)
    return {
        "rollouts/tokens": float(tokens),
        "rollouts/length": tokens / len(flat),
        "rollouts/truncated": float(np.mean([not completion.finished for completion in flat])),
    }


def group_spread(rewards: Array) -> float:
    """Mean over groups of the standard deviation of their known rewards; rewards [P, G], NaN where a call failed."""
    known = rewards[~np.isnan(rewards).all(1)]
    return float(np.nanstd(known, axis=1).mean()) if len(known) else 0.0
