"""Intervals against published values, hand values and their own laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.stats import bootstrap_mean, mcnemar_p, paired_difference, wilson

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
