"""The order of items that TRL's trainer reads is the one that the Learner's run selects, where no result decides."""

import numpy as np
import pytest

from algos.curriculum.options import CurriculumOptions
from envs.spatial_qa.items import CATEGORIES
from rl_lab.curriculum.store import PoolItem, PoolStore
from rl_lab.stages.grpo import fixed_order


@pytest.mark.parametrize("num_items", [5, 37])
def test_the_fixed_order_is_what_a_pool_selects_for_scheme_uniform(tmp_path, num_items):
    options = CurriculumOptions(batch_size=4, scheme="uniform")
    codes = np.arange(num_items, dtype=np.uint8) % 4
    order = fixed_order(options, 11, codes, steps=9)
    items = [PoolItem(f"item-{number}", CATEGORIES[code]) for number, code in enumerate(codes)]
    pool = PoolStore.create(tmp_path / "pool.sqlite", options, 11, CATEGORIES, items)
    draw = np.random.default_rng(0)
    for step, numbers in enumerate(order, start=1):
        assert pool.select(step, version=step).numbers.tolist() == numbers.tolist()
        pool.observe(step, numbers, draw.random((len(numbers), 3)).round(), np.full(len(numbers), step))
    assert {len(numbers) for numbers in order} == {4}


def test_the_order_follows_from_the_seed():
    options, codes = CurriculumOptions(batch_size=4, scheme="uniform"), np.zeros(20, np.uint8)
    one, again, other = (fixed_order(options, seed, codes, 3) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
