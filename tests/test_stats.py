"""Intervals against published values, hand values and their own laws; means over replicates and items, pass@k, first
passages, variance components and detectable effects against closed forms and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_1samp

from rl_lab.common.stats import (
    Spread,
    SuccessSpread,
    bootstrap_mean,
    first_reach,
    holm,
    item_weights,
    mcnemar_p,
    mean_interval,
    paired_difference,
    pass_at_k,
    plain_mean,
    replicate_weights,
    resampled_means,
    spread,
    student_interval,
    student_p,
    success_difference,
    wilson,
)

COUNT = st.integers(0, 60)
TABLES = st.tuples(COUNT, COUNT, COUNT, COUNT).filter(lambda counts: sum(counts) > 0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    interval = wilson(successes, n)
    assert interval.value == successes / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson(successes, n)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_rate_stays_in_the_unit_interval_and_mirrors(counts):
    successes, n = counts
    interval, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low), abs=1e-12)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 2635, table II, method 10.
    [((36, 12, 2, 0), 0.0569, 0.3404), ((36, 14, 0, 0), 0.1528, 0.4167), ((0, 0, 0, 54), -0.0664, 0.0664)],
)
def test_paired_difference_gives_the_published_intervals(table, low, high):
    interval = paired_difference(*table)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_paired_difference_by_hand():
    """50 won, 5 lost, 25 both, 20 neither: p1 = .75, p2 = .3, phi = (500 - 250 - 50) / sqrt(75 * 25 * 30 * 70)."""
    phi = 200 / np.sqrt(75 * 25 * 30 * 70)
    first, second = wilson(75, 100), wilson(30, 100)
    a, b = 0.75 - first.low, second.high - 0.3
    # n / 2 = 50 is taken off the product 25 * 20 - 50 * 5 = 250, which leaves 200.
    interval = paired_difference(25, 50, 5, 20)
    assert interval.value == pytest.approx(0.45)
    assert interval.low == pytest.approx(0.45 - np.sqrt(a * a - 2 * phi * a * b + b * b), abs=1e-12)


@given(TABLES)
def test_paired_difference_contains_its_estimate_and_changes_sign_with_the_order(table):
    both, won, lost, neither = table
    forward, backward = paired_difference(both, won, lost, neither), paired_difference(both, lost, won, neither)
    assert -1 <= forward.low <= forward.value <= forward.high <= 1
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low), abs=1e-12)


@pytest.mark.parametrize("shares", [(0.35, 0.3, 0.05, 0.3), (0.4, 0.5, 0.02, 0.08), (0.8, 0.1, 0.05, 0.05)])
def test_paired_difference_covers_the_truth_in_95_of_100_runs(shares):
    tables = np.random.default_rng(1).multinomial(100, shares, size=1500)
    intervals = [paired_difference(*map(int, table)) for table in tables]
    truth = shares[1] - shares[2]
    assert 0.935 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.99


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0), (1, 7, 18 / 256), (8, 1, 20 / 512)]
)
def test_mcnemar_p_by_hand(wins, losses, p):
    assert mcnemar_p(wins, losses) == pytest.approx(p)
    assert mcnemar_p(losses, wins) == pytest.approx(p)


def test_bootstrap_is_deterministic_and_close_to_the_normal_interval_of_many_values():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = bootstrap_mean(values)
    assert interval == bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_of_equal_values_is_a_point_and_of_one_value_is_refused():
    interval = bootstrap_mean([4.0, 4.0, 4.0])
    assert (interval.value, interval.low, interval.high) == (4.0, 4.0, 4.0)
    with pytest.raises(ValueError, match="at least two"):
        bootstrap_mean([1.0])


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


def draw(rng, n, seeds, true, mean=0.0):
    return (
        mean
        + true.items * rng.normal(size=(n, 1))
        + true.seeds * rng.normal(size=(1, seeds))
        + true.rest * rng.normal(size=(n, seeds))
    )


def test_the_estimates_are_those_that_made_the_data():
    true, rng = Spread(items=0.3, seeds=0.05, rest=0.4), np.random.default_rng(0)
    found = [spread(draw(rng, 200, 5, true)) for _ in range(200)]
    for name in ("items", "seeds", "rest"):
        variance = np.mean([getattr(one, name) ** 2 for one in found])
        assert variance == pytest.approx(getattr(true, name) ** 2, rel=0.12)


def test_the_standard_error_is_the_spread_of_means_of_repeated_experiments():
    true, rng = Spread(items=0.3, seeds=0.05, rest=0.4), np.random.default_rng(1)
    means = [draw(rng, 80, 3, true).mean() for _ in range(4000)]
    assert np.std(means) == pytest.approx(true.standard_error(80, 3), rel=0.03)


def test_a_detectable_effect_is_found_with_the_promised_chance():
    """A t test over the means of the replicates finds it in about 80 of 100 experiments where seeds are what varies."""
    true, rng, n, seeds = Spread(items=0.0, seeds=0.05, rest=0.1), np.random.default_rng(2), 60, 6
    effect = true.detectable(n, seeds)
    limit = t.ppf(0.975, seeds - 1)
    means = np.array([draw(rng, n, seeds, true, effect).mean(0) for _ in range(2000)])
    statistic = means.mean(1) / (means.std(1, ddof=1) / seeds**0.5)
    assert (statistic > limit).mean() == pytest.approx(0.8, abs=0.06)


def test_no_number_of_items_makes_up_for_seeds():
    true = Spread(items=0.3, seeds=0.05, rest=0.3)
    assert true.detectable(10**9, 3) > 0.05 * (t.ppf(0.975, 2) + t.ppf(0.8, 2)) / 3**0.5 * 0.999
    assert true.detectable(10**9, 3) > true.detectable(300, 12)


@pytest.mark.parametrize("effect", [0.052, 0.06, 0.1])
def test_seeds_needed_is_the_fewest_that_suffice(effect):
    true = Spread(items=0.3, seeds=0.02, rest=0.3)
    needed = true.seeds_needed(effect, 300)
    assert needed is not None
    assert true.detectable(300, needed) <= effect
    assert needed == 2 or true.detectable(300, needed - 1) > effect


def test_an_effect_below_what_the_items_blur_needs_more_seeds_than_anybody_has():
    assert Spread(items=0.3, seeds=0.0, rest=0.0).seeds_needed(0.001, 300) is None


def test_items_with_a_missing_reward_are_left_out():
    data = draw(np.random.default_rng(3), 50, 3, Spread(0.3, 0.05, 0.2))
    holes = np.vstack([data, [np.nan, 0.2, 0.1]])
    assert spread(holes) == spread(data)


@pytest.mark.parametrize("shape", [(1, 3), (10, 1)])
def test_too_little_data_is_refused(shape):
    with pytest.raises(ValueError, match="at least 2 items and 2 training seeds"):
        spread(np.zeros(shape))


def test_intervals_and_tests_over_training_seeds_are_students():
    one = student_interval([1.0, 2.0, 3.0])  # s = 1, t_{0.975, 2} = 4.30265
    assert (one.value, one.high) == pytest.approx((2.0, 2.0 + 4.30265 / 3**0.5), abs=1e-4)
    assert student_p([1.0, 2.0, 3.0]) == pytest.approx(ttest_1samp([1.0, 2.0, 3.0], 0.0).pvalue)
    assert student_p([0.5, 0.5]) == 0.0 and student_p([0.0, 0.0]) == 1.0
    for compute in (student_interval, student_p):
        with pytest.raises(ValueError, match="at least 2"):
            compute([0.1])


def test_a_difference_in_success_holds_for_other_seeds_and_for_other_episodes():
    seeds_differ = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])  # means of seeds 0.5 and 1
    interval, p = success_difference(seeds_differ)
    assert interval == student_interval([0.5, 1.0]) and p == student_p([0.5, 1.0])
    seeds_agree = np.tile([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], (4, 1))
    interval, p = success_difference(seeds_agree)
    assert interval == student_interval([0.5, 0.5, 1.0, 0.0, 0.0] * 4)
    assert p == student_p([0.5, 0.5, 1.0, 0.0, 0.0] * 4)
    interval, p = success_difference(np.zeros((98, 2)))
    assert p == 1 and interval.high == -interval.low == pytest.approx(t(97).ppf(0.975) * 2**0.5 / 100)


def test_what_success_finds_is_bounded_by_seeds_and_by_episodes():
    quantiles = {units: t(units - 1).ppf([0.975, 0.8]).sum() for units in (5, 100)}
    of_seeds, of_episodes = SuccessSpread(0.0, 0.1, 0.5), SuccessSpread(2.0, 0.0, 0.0)
    assert of_seeds.detectable(100, 5) == pytest.approx(quantiles[5] * (0.1**2 / 5 + 0.5**2 / 500) ** 0.5)
    assert of_episodes.detectable(100, 5) == pytest.approx(quantiles[100] * 0.2)
    assert SuccessSpread(0.0, 0.0, 0.0).detectable(100, 5) == pytest.approx(quantiles[100] * 2**0.5 / 102)


def test_holm_holds_p_values_together():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
