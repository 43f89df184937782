"""Drawing without replacement by weight, and equal shares for categories of unequal size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from algos.curriculum.items import Array

ALL = -1
"""Category of a draw from all categories at once."""


@dataclass(frozen=True)
class WeightedDraw:
    """Items taken for one reason out of one category, and the odds that they had."""

    reason: str
    """frontier, unseen, stale, pinned, uniform, probe, stage, easy, normal, hard or own."""
    category: int
    """Category code, or ALL."""
    numbers: Array
    chances: Array
    """Expected number of times that the item was taken, at most 1: places * weight / total weight."""
    candidates: int
    """Items that could have been taken."""
    total_weight: float
    """Sum of their weights; the number of candidates for even draws."""
    rest: int = 0
    """Steps that items of the category rest after a selection."""


@dataclass(frozen=True)
class Selection:
    """One batch of items, or the replacements of a refill."""

    step: int
    round: int
    """0 for the batch, 1, 2, ... for the refills of the same step."""
    draws: tuple[WeightedDraw, ...]
    trains: bool = True
    """False for a probe of stage mode: score it, do not train on it."""

    @property
    def numbers(self) -> Array:
        """Item numbers, int64 [B]. Empty when stage mode waits for results that are still out."""
        return np.concatenate([np.empty(0, np.int64), *(draw.numbers for draw in self.draws)])


BLOCK = 128
"""Places whose weights are summed together, so that a draw looks into few of them."""


@dataclass(frozen=True)
class Weights:
    """Weights of places, or flags of those that count."""

    sums: Array
    """Of each BLOCK places."""
    at: Callable[[Array], Array]
    """Weights of given places; 0 behind the last one."""

    @classmethod
    def of(cls, values: Array, sums: Array | None = None) -> Weights:
        """Those of an array. Its sums are taken unless they are known."""
        if sums is None:
            kind = np.int64 if values.dtype == np.bool_ else None
            sums = np.add.reduceat(values, np.arange(0, len(values), BLOCK), dtype=kind) if len(values) else np.empty(0)
        return cls(sums, lambda places: values.take(places, mode="clip") * (places < len(values)))

    def places(self, marks: Array) -> Array:
        """Where marks in [0, total) fall on the line that the weights share; on a tie it may be a place of weight 0."""
        ends = np.cumsum(self.sums)
        block = np.minimum(np.searchsorted(ends, marks, side="right"), len(ends) - 1)
        inside = np.cumsum(self.at(block[:, None] * BLOCK + np.arange(BLOCK)), axis=1)
        return block * BLOCK + (inside <= (marks - ends[block] + self.sums[block])[:, None]).sum(1)


def draw_weighted(rng: np.random.Generator, weights: Weights, count: int) -> Array:
    """Up to `count` distinct places, each next one with probability proportional to its weight among those left.

    Fewer only if fewer weights are positive. Draws with replacement and drops repetitions, which is the same law.
    """
    chosen = np.empty(0, np.int64)
    left = Weights(weights.sums.copy(), lambda places: weights.at(places) * ~np.isin(places, chosen))
    while len(chosen) < count and left.sums.any():
        places = left.places(rng.random(2 * (count - len(chosen)) + 8) * np.cumsum(left.sums)[-1])
        places = places[left.at(places) > 0]
        fresh = places[np.sort(np.unique(places, return_index=True)[1])][: count - len(chosen)]
        chosen = np.concatenate([chosen, fresh])
        blocks = np.unique(fresh // BLOCK)
        left.sums[blocks] = left.at(blocks[:, None] * BLOCK + np.arange(BLOCK)).sum(1)
    return chosen


def by_weight(
    rng: np.random.Generator, reason: str, category: int, weights: Weights, count: int, candidates: int, rest: int = 0
) -> WeightedDraw:
    """`count` of the places by their weights, of which `candidates` are not 0."""
    chosen, total = draw_weighted(rng, weights, count), float(weights.sums.sum())
    chances = np.minimum(len(chosen) * weights.at(chosen) / max(total, 1e-300), 1.0)
    return WeightedDraw(reason, category, chosen, chances, candidates, total, rest)


def evenly(rng: np.random.Generator, reason: str, category: int, flags: Weights, count: int) -> WeightedDraw:
    """`count` of the places that have a flag, or all of them, with equal chances."""
    size = int(flags.sums.sum())
    count = min(count, size)
    chosen = flags.places(rng.choice(size, count, replace=False)) if count else np.empty(0, np.int64)
    return WeightedDraw(reason, category, chosen, np.full(count, count / max(size, 1)), size, float(size))


def balanced_places(total: int, available: Array, turn: int = 0) -> Array:
    """Places of each category, int64 [C]: min(available, level) at the highest level that `total` allows.

    Places that do not divide evenly go to the categories in turn, the first of them being `turn` modulo C.
    """
    available = np.roll(np.asarray(available, dtype=np.int64), -turn % len(available))
    level, above = 0, total + 1
    while above - level > 1:
        middle = (level + above) // 2
        level, above = (middle, above) if np.minimum(available, middle).sum() <= total else (level, middle)
    places = np.minimum(available, level)
    places[np.flatnonzero(available > level)[: total - places.sum()]] += 1
    return np.roll(places, turn % len(available))
