"""The contract of a curriculum scheme of one's own, held on a pool whose items are answered by chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from algos.curriculum.curriculum import Curriculum
from algos.curriculum.options import CurriculumOptions, OwnScheme
from algos.curriculum.own import make_scheme, own_weights
from rl_lab.common.errors import UserError

NAME = "yours"
ITEMS, CATEGORIES, BATCH, GROUP, STEPS = 240, 4, 8, 8, 40
LEARNED = 0.1
"""Part of the way to certainty that an item goes with each group that taught something."""


def check_scheme(source: str, settings: dict[str, Any]) -> Iterator[str]:
    """What holds of a scheme, as it is found; ValueError at the first that does not. `settings` are its own."""
    try:
        own = OwnScheme(code=source, settings=settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    yield f"is made with its settings: {type(make_scheme(own)).__name__}"
    options = CurriculumOptions(scheme=NAME, own={NAME: own}, batch_size=BATCH)
    pool = _pool(options)
    yield "weights items that were never asked, the same again, and changes no column: " + _weighted(pool, 0)
    asked, taught = _run(pool)
    yield "and those that were: " + _weighted(pool, STEPS)
    if len(asked) < BATCH * STEPS:
        raise ValueError(f"it filled {len(asked)} of {BATCH * STEPS} places; give more items a weight above 0")
    evenly, signal = _run(_pool(options.with_scheme("uniform")))
    yield (
        f"in {STEPS} steps of {BATCH} of {ITEMS} items asks {len(set(asked))} of them, and {taught} groups have a "
        f"signal; uniform asks {len(set(evenly))}, and {signal} have"
    )
    again, _ = _run(_pool(options))
    if again != asked:
        raise ValueError("a second run selects other items; keep nothing between calls and draw nothing by chance")
    yield "selects the same again in a run of the same seed"


def _pool(options: CurriculumOptions) -> Curriculum:
    pool = Curriculum(options, seed=0, num_categories=CATEGORIES)
    pool.add((np.arange(ITEMS) % CATEGORIES).astype(np.uint8))
    return pool


def _weighted(pool: Curriculum, step: int) -> str:
    """The weights in words; ValueError where the same columns give others, or are changed."""
    own = pool.options.own[NAME]
    rows = np.flatnonzero(~pool.items.retired)
    before = pool.items.records(rows)
    first = own_weights(make_scheme(own), pool.items, rows, step, step)
    if not np.array_equal(pool.items.records(rows), before):
        raise ValueError("weights changed the items; read their columns only")
    if not np.array_equal(first, own_weights(make_scheme(own), pool.items, rows, step, step)):
        raise ValueError("the same items get other weights again; weigh them by their columns, not by chance or memory")
    if not first.any():
        raise ValueError(f"all {len(rows)} items have the weight 0, so none could be selected")
    return f"{first.min():.3g} to {first.max():.3g}"


def _run(pool: Curriculum) -> tuple[list[int], int]:
    """Items in the order in which they were asked, and the number of groups that taught something."""
    chance = np.random.default_rng(0)
    rate = chance.beta(0.6, 0.6, ITEMS)
    asked: list[int] = []
    taught = 0
    for step in range(STEPS):
        numbers = pool.select(step, step).numbers
        rewards = (chance.random((len(numbers), GROUP)) < rate[numbers, None]).astype(float)
        found = pool.observe(step, numbers, rewards, np.full(len(numbers), step))
        better = numbers[found.signal]
        rate[better] += LEARNED * (1 - rate[better])
        asked += numbers.tolist()
        taught += len(better)
    return asked, taught
