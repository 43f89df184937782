"""Variance components and detectable effects against simulation and closed forms."""

import numpy as np
import pytest
from scipy.stats import t

from rl_lab.stats import Spread, spread


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
