"""From the pool's selections to scored rollout groups: what is asked when, with which weights, and what replaces what.

A selection, the seeds of its completions and the weights that write them follow from the step alone, so a resumed run
asks what the unbroken one asked; and what the store has from before the kill is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from algos.curriculum.items import Array, Observation
from envs.spatial_qa.items import Item
from rewards.rubric import Rewards
from rl_lab.common.seeding import integer
from rl_lab.curriculum.store import PoolStore
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore, stored_groups
from rl_lab.records.token_batches import item_prompt
from rl_lab.records.types import Completion, Prompt, RolloutGroup, Sampling, group_rewards, group_versions
from rl_lab.rollouts.answering import FirstFailures, ask, collect, rollout_groups, score
from rl_lab.rollouts.clock import Clock
from rl_lab.workers.learner import Weights
from rl_lab.workers.pool import Batch, WorkerPool


@dataclass(frozen=True)
class Issued:
    """Items whose completions are on their way."""

    step: int
    numbers: Array
    """Item numbers, int64 [P]; empty where a probe of stage mode waits for results that are still out."""
    trains: bool
    weights: Weights
    """That write the answers."""
    prompts: list[Prompt]
    asked: Batch
    """Empty where the store has them."""
    stored: list[list[Completion]]
    """What the store has of these groups, from before a kill."""


@dataclass(frozen=True)
class StepRollouts:
    """All rollout groups of a step, and what the pool learned from each round of them."""

    rounds: list[list[RolloutGroup]]
    observations: list[Observation]
    first_failures: FirstFailures

    @property
    def groups(self) -> list[RolloutGroup]:
        """All groups, those that replaced others behind."""
        return [group for groups in self.rounds for group in groups]

    @property
    def signal(self) -> Array:
        """bool [P]: the group's rewards differ enough to learn from."""
        return np.concatenate([seen.signal for seen in self.observations])


@dataclass
class Questioner:
    """Engines that complete prompts of items, of the pool or of an examination, and rewards that score them."""

    items: ItemFile | Sequence[Item]
    engines: WorkerPool
    processor: HunYuanVLMoTProcessor
    rewards: Rewards
    sampling: Sampling
    prompts_per_call: int
    clock: Clock
    check_stop: Callable[[], None]

    def prompts(self, numbers: Array, seeds: Iterable[int]) -> list[Prompt]:
        """Items as the engines read them, with the seeds of their completions."""
        pairs = zip(numbers.tolist(), seeds, strict=True)
        return [item_prompt(self.items[number], self.processor, seed) for number, seed in pairs]

    def ask(self, prompts: Sequence[Prompt], weights: Weights) -> Batch:
        """Give prompts to the engines."""
        return ask(self.engines, prompts, self.sampling, weights.reference, self.prompts_per_call)

    def scored(
        self, numbers: Array, prompts: Sequence[Prompt], asked: Batch, *, judge_all: bool = False
    ) -> tuple[list[RolloutGroup], FirstFailures]:
        """Wait for the completions of these items' prompts and score them; `judge_all` as of `score`."""
        items = [self.items[number] for number in numbers.tolist()]
        with self.clock.timed("generate"):
            completions, busy = collect(self.engines, asked, self.check_stop)
        self.clock.add("busy", busy)
        with self.clock.timed("score"):
            groups = rollout_groups(items, prompts, completions, self.processor)
            return score(self.rewards, groups, judge_all=judge_all)

    def groups(self, issued: Issued) -> tuple[list[RolloutGroup], FirstFailures]:
        """Wait for completions and score them, or take both from the store."""
        if not issued.stored:
            return self.scored(issued.numbers, issued.prompts, issued.asked)
        items = [self.items[number] for number in issued.numbers.tolist()]
        return list(map(RolloutGroup, items, issued.prompts, issued.stored)), {}


class RolloutRun:
    """The rollouts of a run, step after step, some of them asked before their turn."""

    def __init__(
        self,
        items: ItemFile,
        pool: PoolStore,
        store: RolloutStore,
        questioner: Questioner,
        *,
        max_refills: int,
        seed: int,
        saved_weights: Callable[[int], Weights],
    ) -> None:
        """`saved_weights` has older versions with which a checkpoint's selections were asked."""
        self.items, self.pool, self.store, self.questioner = items, pool, store, questioner
        self.max_refills, self.seed, self._saved_weights = max_refills, seed, saved_weights
        self._ahead: dict[int, Issued] = {}

    @property
    def weights_ahead(self) -> list[Weights]:
        """Weights with which the steps to come were asked."""
        return [issued.weights for issued in self._ahead.values()]

    def ahead(self, step: int) -> Issued | None:
        """What was asked for a step that is still to come."""
        return self._ahead.get(step)

    def issue_ahead(self, steps: Iterable[int], weights: Weights) -> None:
        """Ask what these steps will need, unless it was asked already."""
        for step in steps:
            if step not in self._ahead:
                self._ahead[step] = self._issue(step, weights)

    def issued(self, step: int, weights: Weights) -> Issued:
        """What was asked for a step, now if not before."""
        return self._ahead.pop(step, None) or self._issue(step, weights)

    def finish(self, issued: Issued, weights: Weights) -> StepRollouts:
        """The step's rollouts, with groups without signal replaced at most `max_refills` times by other items."""
        groups, first_failures = self.questioner.groups(issued)
        rounds, observations = [groups], [self._observe(issued, groups)]
        while issued.trains and len(rounds) <= self.max_refills:
            places = self.pool.curriculum.refill_places(observations[-1])
            if not places.sum():
                break
            numbers = self.pool.select(issued.step, weights.version, places, len(rounds)).numbers
            if not len(numbers):
                break
            refill = self._ask(issued.step, len(rounds), numbers, True, weights, sum(map(len, rounds)))
            groups, newer = self.questioner.groups(refill)
            rounds.append(groups)
            observations.append(self._observe(refill, groups))
            first_failures = {**newer, **first_failures}
        return StepRollouts(rounds, observations, first_failures)

    def _observe(self, issued: Issued, groups: Sequence[RolloutGroup]) -> Observation:
        return self.pool.observe(issued.step, issued.numbers, group_rewards(groups), group_versions(groups))

    def _issue(self, step: int, weights: Weights) -> Issued:
        """Select the items of a step, unless a checkpoint found them selected, and give them to the engines."""
        known = self.pool.selected(step)
        if known is None:
            selection = self.pool.select(step, weights.version).selection
            return self._ask(step, 0, selection.numbers, selection.trains, weights)
        if known.version != weights.version:
            weights = self._saved_weights(known.version)
        return self._ask(step, 0, known.numbers, known.trains, weights)

    def _ask(
        self, step: int, round_: int, numbers: Array, trains: bool, weights: Weights, first_group: int = 0
    ) -> Issued:
        """Ask items whose groups are numbered from `first_group`; seeds follow from step, round and item."""
        for number in numbers.tolist():
            self.pool.keep_images(number, self.items.pngs(number))
        seeds = [integer(self.seed, "draw", step, round_, number) for number in numbers.tolist()]
        prompts = self.questioner.prompts(numbers, seeds)
        stored = self._stored(step, numbers, first_group)
        asked = [] if stored else self.questioner.ask(prompts, weights)
        return Issued(step, numbers, trains, weights, prompts, asked, stored)

    def _stored(self, step: int, numbers: Array, first_group: int) -> list[list[Completion]]:
        """What the store has of these items; nothing if it has others, as somebody pinned or retired some since."""
        if step not in self.store.steps():
            return []
        groups = dict(enumerate(self.pool.ids(numbers), first_group))
        rows = [row for row in self.store.read(steps=[step]) if row["group"] in groups]
        if groups == {row["group"]: row["item"] for row in rows}:
            return stored_groups(rows)
        self.store.forget_after(step - 1)
        return []
