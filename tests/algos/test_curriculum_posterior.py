"""The decayed Beta posterior, the band probability and the rules of signal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.curriculum.items import BANDS, EASY, FLAT, FRONTIER, HARD, UNSEEN, Items, band_probabilities, observe
from algos.curriculum.options import CurriculumOptions
from algos.curriculum.posterior import (
    beta_cdf,
    chi_square_cdf,
    decay_factor,
    has_signal,
    partial_success,
    spread_probability,
)

OPTIONS = CurriculumOptions(batch_size=4)
GROUPS = st.lists(
    st.tuples(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 60)), min_size=1, max_size=6
)


def one_item(groups, options=OPTIONS):
    items = Items()
    items.append(np.zeros(1), np.zeros(1), options)
    for step, (rewards, version) in enumerate(groups):
        observe(items, step, np.array([0]), np.array([rewards]), np.array([version]), options)
    return items


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.001, 0.999))
def test_the_distribution_function_equals_the_binomial_sum(a, b, x):
    from math import comb

    n = a + b - 1
    expected = sum(comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
    assert beta_cdf(np.array([float(a)]), np.array([float(b)]), x)[0] == pytest.approx(expected, abs=1e-9)


@given(st.floats(0.2, 500), st.floats(0.2, 500), st.floats(0.001, 0.999))
def test_the_distribution_function_is_symmetric_and_bounded(a, b, x):
    a, b = np.array([a]), np.array([b])
    assert beta_cdf(a, b, x) + beta_cdf(b, a, 1 - x) == pytest.approx(1, abs=1e-8)
    assert 0 <= beta_cdf(a, b, x)[0] <= beta_cdf(a, b, min(1.0, x + 0.01))[0] + 1e-12
    assert beta_cdf(a, b, 0.0)[0] == 0 and beta_cdf(a, b, 1.0)[0] == 1


def test_the_distribution_functions_agree_with_sampling():
    rng = np.random.default_rng(0)
    for a, b in ((1.0, 1.0), (9.0, 1.0), (3.3, 14.2), (0.7, 0.4)):
        sampled = (rng.beta(a, b, 200_000) <= 0.3).mean()
        assert beta_cdf(np.array([a]), np.array([b]), 0.3)[0] == pytest.approx(sampled, abs=0.005)
    for dof in (3, 9, 40):
        sampled = (rng.chisquare(dof, 200_000) <= 0.8 * dof).mean()
        assert chi_square_cdf(np.array([0.8 * dof]), np.array([float(dof)]))[0] == pytest.approx(sampled, abs=0.01)


@pytest.mark.parametrize(("passes", "rollouts"), [(0, 8), (1, 8), (4, 8), (8, 8), (15, 16), (0, 0)])
def test_the_band_probability_agrees_with_sampling_the_posterior(passes, rollouts):
    sums = np.array([[passes], [rollouts], [passes]], float)
    below, inside, above = band_probabilities(sums, CurriculumOptions(batch_size=1, min_spread=0.0))[:, 0]
    draws = np.random.default_rng(1).beta(1 + passes, 1 + rollouts - passes, 200_000)
    assert below == pytest.approx((draws < 0.1).mean(), abs=0.005)
    assert inside == pytest.approx(((draws > 0.1) & (draws < 0.9)).mean(), abs=0.005)
    assert below + inside + above == pytest.approx(1)


def test_the_spread_probability_agrees_with_sampling_its_posterior():
    rng = np.random.default_rng(2)
    rewards = np.array([0.5, 0.52, 0.45, 0.56])
    sums = np.array([rewards.sum()]), np.array([4.0]), np.array([(rewards**2).sum()])
    scatter = 1 / 12 + 4 * rewards.var()
    for limit in (0.05, 0.1, 0.2):
        sampled = (np.sqrt(scatter / rng.chisquare(5, 200_000)) > limit).mean()
        assert spread_probability(*sums, limit)[0] == pytest.approx(sampled, abs=0.01)


def test_without_evidence_the_posterior_is_the_prior():
    items = one_item([])
    assert items.evidence[0] == 0 and items.band[0] == UNSEEN and items.version[0] == -1
    assert items.band_probability[0] == pytest.approx(0.8, abs=0.01)


def test_evidence_without_decay_is_counting():
    items = one_item([([1, 0, 1], 3), ([1, 1, 1], 3)])
    assert (items.successes[0], items.evidence[0], items.squares[0]) == (5, 6, 5)
    assert (items.groups[0], items.rollouts[0], items.version[0]) == (2, 6, 3)


def test_evidence_halves_every_half_life():
    items = one_item([([1, 1, 0, 0], 0), ([1, 1, 1, 1], 20)])
    assert items.successes[0] == pytest.approx(1 + 4) and items.evidence[0] == pytest.approx(2 + 4)
    assert decay_factor(np.array([0, 20, 40]), 20.0).tolist() == [1.0, 0.5, 0.25]


@given(GROUPS, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(groups, random):
    shuffled = groups.copy()
    random.shuffle(shuffled)
    first, second = one_item(groups), one_item(shuffled)
    for name in ("successes", "evidence", "squares", "version", "rollouts"):
        assert getattr(first, name)[0] == pytest.approx(getattr(second, name)[0], rel=1e-9, abs=1e-12)


@given(GROUPS)
def test_sums_stay_within_their_laws_and_probabilities_in_the_unit_interval(groups):
    items = one_item(groups)
    assert -1e-9 <= items.squares[0] <= items.successes[0] + 1e-9 <= items.evidence[0] + 2e-9
    assert 0 <= items.band_probability[0] <= 1 and BANDS[items.band[0]] != "unseen"


@given(st.integers(0, 12), st.integers(0, 12))
def test_more_passes_never_make_an_item_look_harder(passes, more):
    options = CurriculumOptions(batch_size=1, min_spread=0.0)
    low, high = (np.array([[p], [24.0], [p]]) for p in (float(min(passes, passes + more)), float(passes + more)))
    assert band_probabilities(high, options)[0, 0] <= band_probabilities(low, options)[0, 0] + 1e-9
    assert band_probabilities(high, options)[2, 0] >= band_probabilities(low, options)[2, 0] - 1e-9


@pytest.mark.parametrize(
    ("rewards", "band"),
    [([0] * 16, HARD), ([1] * 32, EASY), ([0, 1] * 4, FRONTIER), ([0.5] * 64, FLAT), ([0.3, 0.6] * 8, FRONTIER)],
)
def test_items_are_classified_by_where_they_most_probably_lie(rewards, band):
    assert one_item([(rewards, 0)]).band[0] == band


def test_failed_calls_are_counted_and_never_read_as_zero():
    items = one_item([([1.0, np.nan, 1.0, np.nan], 0)])
    assert (items.successes[0], items.evidence[0], items.failures[0], items.rollouts[0]) == (2, 2, 2, 2)
    items = one_item([([np.nan, np.nan], 5)])
    assert items.evidence[0] == 0 and items.groups[0] == 0 and items.band[0] == UNSEEN and items.failures[0] == 2


def test_signal_needs_different_binary_rewards_or_enough_spread_of_dense_ones():
    groups = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5], [0.5, 0.52, 0.5, 0.5]])
    mean, spread = groups.mean(1), groups.std(1)
    assert has_signal(mean, spread, 0.05).tolist() == [False, False, True, False, False]
    assert has_signal(np.array([1 / 1000]), np.array([np.sqrt(0.000999)]), 0.05).tolist() == [True]
    dense = np.array([[0.92, 1.0], [0.0, 0.1], [0.3, 0.5]])
    assert partial_success(dense.mean(1), dense.std(1), 0.1, 0.9, 0.03).tolist() == [False, False, True]
    one_of_sixteen = np.array([0.0625]), np.array([np.sqrt(0.0625 * 0.9375)])
    assert partial_success(*one_of_sixteen, 0.1, 0.9, 0.05).tolist() == [True]
