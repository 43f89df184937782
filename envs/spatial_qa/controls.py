"""Two scores that a model must beat before it can be said to look: a blanked image, and the best constant answer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from envs.spatial_qa.items import Item

GREY = 127
MAX_CANDIDATES = 64
"""Answers tried for each generator, spread evenly over those that occur."""


def blank(item: Item) -> Item:
    """The same question over grey images of the same sizes; its id says so."""
    images = tuple(np.full_like(image, GREY) for image in item.images)
    return replace(item, id=f"{item.id}-blank", images=images)


@dataclass(frozen=True)
class ConstantAnswer:
    """The answer that scores best when it is given to every question of one generator."""

    reply: str
    """The whole completion, without thought."""
    reward: float
    """Its mean over the items it was chosen for."""


def best_constant_answers(
    items: Sequence[Item], reward: Callable[[str, Item], float]
) -> tuple[dict[str, ConstantAnswer], float]:
    """For each generator the best of the answers that occur, and the mean reward of all items under these.

    `reward` scores a completion for an item, in [0, 1]. To score other items than those the answers were chosen on, use
    `constant_reward`. ValueError without items.
    """
    if not items:
        raise ValueError("no items; give at least one to choose the constant answers on")
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.task].append(item)
    best = {task: _best(group, reward) for task, group in groups.items()}
    return best, constant_reward(items, best, reward)


def constant_reward(
    items: Sequence[Item], answers: dict[str, ConstantAnswer], reward: Callable[[str, Item], float]
) -> float:
    """Mean reward of items under constant answers; 0 for a generator without one."""
    return float(np.mean([reward(answers[i.task].reply, i) if i.task in answers else 0.0 for i in items]))


def _best(items: Sequence[Item], reward: Callable[[str, Item], float]) -> ConstantAnswer:
    answers = sorted({item.solution[item.solution.index("<answer>") :] for item in items})
    step = max(1, -(-len(answers) // MAX_CANDIDATES))
    scored = [(float(np.mean([reward(answer, item) for item in items])), answer) for answer in answers[::step]]
    value, reply = max(scored, key=lambda pair: (not math.isnan(pair[0]), pair))  # a reward that failed never wins
    return ConstantAnswer(reply, value)
