"""Means over replicates and items, pass@k and first passages against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.stats import (
    bootstrap_mean,
    first_reach,
    item_weights,
    mean_interval,
    pass_at_k,
    plain_mean,
    replicate_weights,
    resampled_means,
)


def test_weights_sum_to_one_and_come_from_a_fixed_generator():
    for weights in (item_weights(7), replicate_weights(1), replicate_weights(3)):
        assert weights.sum(1) == pytest.approx(1)
    assert np.array_equal(item_weights.__wrapped__(7), item_weights(7))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_replicates_alone_give_the_standard_error_of_their_mean(count):
    """All items alike within a replicate: SE^2 = s^2 / R with s^2 over R - 1."""
    means = np.random.default_rng(count).normal(size=count)
    resamples = resampled_means(np.tile(means, (50, 1)))
    assert resamples.std() == pytest.approx(means.std(ddof=1) / count**0.5, rel=0.06)


def test_items_alone_give_the_standard_error_over_items_however_many_replicates_repeat_them():
    """All replicates alike: three times the same answers say no more about other items than one."""
    items = np.random.default_rng(0).random(200)
    for count in (1, 3):
        resamples = resampled_means(np.tile(items[:, None], (1, count)))
        assert resamples.std() == pytest.approx(items.std() / 200**0.5, rel=0.05)


def test_the_variances_of_items_and_replicates_add_up():
    rng = np.random.default_rng(4)
    items, seeds = rng.normal(0, 1, 150), rng.normal(0, 0.1, 4)
    resamples = resampled_means(items[:, None] + seeds[None, :])
    assert resamples.var() == pytest.approx(items.var() / 150 + seeds.var(ddof=1) / 4, rel=0.1)


def test_one_replicate_gives_the_bootstrap_over_items():
    values = np.random.default_rng(1).random(300)
    mine, known = mean_interval(values[:, None]), bootstrap_mean(values.tolist())
    assert (mine.value, mine.low, mine.high) == pytest.approx((known.value, known.low, known.high), abs=3e-3)


def test_the_interval_covers_the_truth_in_about_95_of_100_experiments_with_few_replicates():
    rng, covered = np.random.default_rng(5), 0
    for _ in range(300):
        rewards = rng.normal(0, 1, (60, 1)) + rng.normal(0, 0.05, (1, 3)) + rng.normal(0, 0.5, (60, 3))
        interval = mean_interval(rewards)
        covered += interval.low <= 0 <= interval.high
    assert covered / 300 > 0.91


def test_missing_rewards_are_left_out_of_their_replicate():
    rewards = np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, np.nan], [np.nan, np.nan]])
    assert plain_mean(rewards) == pytest.approx(0.5)
    interval = mean_interval(rewards)
    assert interval.value == 0.5 and interval.low < 0.5 < interval.high
    with pytest.raises(ValueError, match="at least one known"):
        plain_mean(np.full((3, 1), np.nan))


@pytest.mark.parametrize(
    ("n", "c", "k", "value"), [(4, 0, 2, 0.0), (4, 4, 1, 1.0), (4, 1, 1, 0.25), (4, 1, 4, 1.0), (5, 2, 2, 1 - 3 / 10)]
)
def test_pass_at_k_by_hand(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_pass_and_grows_with_k(n, c, k):
    if c > n or k > n:
        with pytest.raises(ValueError, match="needs 1 <= k"):
            pass_at_k(n, c, k)
        return
    assert 0 <= pass_at_k(n, c, k) <= 1
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert k == n or pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1)


def test_first_passages_by_hand():
    x = np.array([0.0, 10.0, 20.0])
    y = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    found = first_reach(x, y, np.array([1.5, 5.0, 2.0, 1.0, 0.5]))
    assert found.tolist() == [15.0, np.inf, 0.0, 15.0, 5.0]
