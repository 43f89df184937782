"""A learner of choice questions, small enough for tests: softmax regression by GRPO, which also memorises.

Questions of TASKS tasks at three levels: features x, seen through noise that grows with the level; of four answers
argmax W_task x is right. The policy's logits are (A + B_task) x, so that what it learns on one question helps with
others, most with those of its task, and drilling a few questions teaches their noise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from algos.curriculum.curriculum import Curriculum
from algos.curriculum.options import CurriculumOptions

TASKS, DIM, ANSWERS, GROUP = 8, 64, 4, 8
NOISE = np.array([0.3, 1.0, 2.0])
RATE = 16.0
HELD_OUT = 500


@dataclass
class Questions:
    """What is asked: float [N, DIM], and int [N] each."""

    seen: Any
    right: Any
    task: Any
    level: Any
    useless: Any
    """0: none; 1: never solved; 2: always."""


class Learner:
    """Questions and a policy that knows some of their tasks."""

    def __init__(self, seed: int, num_items: int, useless: float = 0.0, graded: bool = False) -> None:
        """`useless`: share of the (task, level) pairs whose questions nobody can learn from, whatever they are."""
        rng = np.random.default_rng((seed, 1))
        self.graded, self.rng = graded, np.random.default_rng((seed, 2))
        self.truth = rng.normal(size=(TASKS, ANSWERS, DIM))
        self.truth = (self.truth + rng.normal(size=(ANSWERS, DIM))) / np.sqrt(2)
        hopeless = rng.random((TASKS, 3)) < useless
        self.pool, self.held_out = (self._draw(rng, n, bad) for n, bad in ((num_items, hopeless), (HELD_OUT, None)))
        knows = 0.75 * (1 + 1.5 * np.linspace(-1, 1, TASKS))
        self.shared, self.own = np.zeros((ANSWERS, DIM)), knows[:, None, None] * self.truth

    def _draw(self, rng: np.random.Generator, count: int, hopeless: Any) -> Questions:
        task, level = rng.integers(0, TASKS, count), rng.integers(0, 3, count)
        x = rng.normal(size=(count, DIM)) / np.sqrt(DIM)
        seen = x + NOISE[level][:, None] * rng.normal(size=x.shape) / np.sqrt(DIM)
        right = np.einsum("nkd,nd->nk", self.truth[task], x).argmax(1)
        useless = np.zeros(count, int) if hopeless is None else hopeless[task, level] * rng.integers(1, 3, count)
        return Questions(seen / np.linalg.norm(seen, axis=1, keepdims=True), right, task, level, useless)

    def policy(self, of: Questions, numbers: Any) -> Any:
        """Probabilities of the answers, [n, ANSWERS]."""
        logits = np.einsum("nkd,nd->nk", self.shared + self.own[of.task[numbers]], of.seen[numbers])
        chances = np.exp(logits - logits.max(1, keepdims=True))
        return chances / chances.sum(1, keepdims=True)

    def reward(self) -> float:
        """Mean chance of the right answer to a held-out question."""
        everything = np.arange(HELD_OUT)
        return float(self.policy(self.held_out, everything)[everything, self.held_out.right].mean())

    def answer(self, numbers: Any) -> tuple[Any, Any]:
        """Answers and rewards of groups, [n, GROUP] each."""
        chances = self.policy(self.pool, numbers).cumsum(1)
        answers = np.minimum((self.rng.random((len(numbers), GROUP, 1)) > chances[:, None]).sum(2), ANSWERS - 1)
        wrong = np.abs(answers - self.pool.right[numbers][:, None])
        rewards = np.array([1.0, 0.5, 0.25, 0.1])[wrong] if self.graded else (wrong == 0).astype(float)
        if self.graded:
            rewards -= 0.1 * self.rng.random(rewards.shape)
        fixed = self.pool.useless[numbers][:, None]
        return answers, np.where(fixed == 0, rewards, fixed - 1.0)

    def learn(self, numbers: Any, answers: Any, rewards: Any) -> None:
        """One step of GRPO on groups."""
        spread = rewards.std(1, keepdims=True)
        advantages = (rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-4)
        chosen = np.eye(ANSWERS)[answers] - self.policy(self.pool, numbers)[:, None]
        gradient = (advantages[:, :, None] * chosen).mean(1)[:, :, None] * self.pool.seen[numbers][:, None] / 16
        self.shared += RATE * gradient.sum(0)
        np.add.at(self.own, self.pool.task[numbers], RATE * gradient)


@dataclass
class Outcome:
    """What a curriculum did with a pool."""

    distinct: int
    """Items that were asked."""
    most: int
    """Times that one item was asked."""
    signal: float
    """Share of the groups that had a signal."""
    groups: int
    reward: float
    """Held-out, at the end."""
    curve: list[tuple[int, float]]
    """Groups so far and held-out reward, by step."""


def train(
    seed: int,
    *,
    num_items: int = 1000,
    steps: int = 100,
    refills: int = 0,
    useless: float = 0.0,
    graded: bool = False,
    **options: Any,
) -> Outcome:
    """Train on 16 items a step, the schemes that replace groups without signal with `refills` of them."""
    learner = Learner(seed, num_items, useless, graded)
    curriculum = Curriculum(CurriculumOptions(batch_size=16, **options), seed, 4)
    curriculum.add(learner.pool.task % 4, learner.pool.task * 3 + learner.pool.level)
    curve, groups, signal = [], 0, 0
    for step in range(1, steps + 1):
        selection = curriculum.select(step, step)
        for round_ in range(1, refills + 2):
            numbers = selection.numbers
            answers, rewards = learner.answer(numbers)
            seen = curriculum.observe(step, numbers, rewards, np.full(len(numbers), step))
            groups, signal = groups + len(numbers), signal + int(seen.signal.sum())
            learner.learn(numbers[seen.signal], answers[seen.signal], rewards[seen.signal])
            places = curriculum.refill_places(seen)
            if round_ > refills or not places.sum():
                break
            selection = curriculum.select(step, step, places, round_)
        curve.append((groups, learner.reward()))
    times = curriculum.items.selections
    return Outcome(int((times > 0).sum()), int(times.max()), signal / groups, groups, curve[-1][1], curve)
