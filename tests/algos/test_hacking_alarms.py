"""Each detector catches its planted case and is silent on a clean run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.alarms import (
    disagreement_alarm,
    dominance_alarm,
    ends,
    format_alarm,
    length_alarm,
    proxy_alarm,
    variance_alarm,
    variance_shares,
)

STEPS = 60
RNG = np.random.default_rng(0)
RISING = np.linspace(0.4, 0.7, STEPS) + RNG.normal(0, 0.02, STEPS)
FLAT = np.full(STEPS, 0.4) + RNG.normal(0, 0.02, STEPS)


def test_a_proxy_that_rises_alone_is_caught():
    alarm = proxy_alarm(RISING, truth_high=0.02)
    assert alarm is not None
    assert "at most +0.020" in alarm


@pytest.mark.parametrize("proxy, truth_high", [(RISING, 0.2), (FLAT, 0.0), (RISING[:3], 0.0)])
def test_a_proxy_that_rises_with_the_truth_or_not_at_all_is_left_alone(proxy, truth_high):
    assert proxy_alarm(proxy, truth_high) is None


def test_an_uncertain_truth_is_no_alarm():
    """Its interval reaches from far below 0 to far above."""
    assert proxy_alarm(RISING, truth_high=0.15) is None


def parts(spread_of_length):
    answer = RNG.integers(0, 2, 400).astype(float)
    return {"answer": answer, "length": RNG.normal(0.5, spread_of_length, 400), "format": np.ones(400)}


def test_a_part_that_drowns_the_others_is_caught():
    alarm = dominance_alarm(parts(3.0), {"answer": 1.0, "length": 1.0, "format": 0.2})
    assert alarm is not None
    assert "weights.length" in alarm


def test_the_task_may_dominate():
    assert dominance_alarm(parts(0.05), {"answer": 1.0, "length": 1.0, "format": 0.2}) is None


def test_a_single_part_dominates_nothing():
    assert dominance_alarm({"bonus": RNG.random(50)}, {"bonus": 1.0}) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=30))
def test_variance_shares_sum_to_one(rows):
    first, second = zip(*rows, strict=True)
    shares = variance_shares({"a": first, "b": second}, {"a": 0.5, "b": 2.0})
    assert not shares or sum(shares.values()) == pytest.approx(1)


def test_variance_shares_of_independent_parts_are_their_variances():
    values = {"a": RNG.normal(0, 1, 20_000), "b": RNG.normal(0, 2, 20_000)}
    assert variance_shares(values, {"a": 1.0, "b": 1.0})["b"] == pytest.approx(0.8, abs=0.02)


def test_unweighted_and_missing_values_do_not_count():
    values = {"a": [0.0, 1.0, np.nan, 1.0], "b": [0.0, 0.0, 5.0, 0.0], "c": [9.0, -9.0, 0.0, 3.0]}
    assert variance_shares(values, {"a": 1.0, "b": 1.0, "c": 0.0}) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("lengths", [np.linspace(20, 60, STEPS), np.linspace(60, 5, STEPS)])
def test_a_drift_of_length_without_gain_is_caught(lengths):
    assert "tokens without a gain" in str(length_alarm(lengths, truth_high=0.005))


@pytest.mark.parametrize(
    "lengths, truth_high", [(np.linspace(20, 60, STEPS), 0.05), (np.linspace(20, 24, STEPS), -0.1)]
)
def test_longer_answers_that_pay_and_steady_lengths_are_left_alone(lengths, truth_high):
    assert length_alarm(lengths, truth_high) is None


def test_a_format_that_decays_is_caught_and_a_steady_one_is_not():
    assert "fell from" in str(format_alarm(np.linspace(0.99, 0.6, STEPS)))
    assert format_alarm(np.linspace(0.9, 0.99, STEPS)) is None
    assert format_alarm(0.97 + RNG.normal(0, 0.01, STEPS)) is None


def test_a_collapse_of_the_spread_is_caught_but_not_where_all_is_solved():
    spread = np.linspace(0.3, 0.01, STEPS)
    assert "nothing more is learned" in str(variance_alarm(spread, FLAT))
    assert variance_alarm(spread, np.linspace(0.9, 1.0, STEPS)) is None
    assert variance_alarm(0.3 + RNG.normal(0, 0.02, STEPS), FLAT) is None


def test_a_reward_that_never_tells_answers_apart_is_caught():
    nothing = np.zeros(STEPS)
    assert "nothing was learned" in str(variance_alarm(nothing, np.ones(STEPS)))
    assert variance_alarm([*nothing[1:], 0.1], np.ones(STEPS)) is None


def test_an_ensemble_that_comes_to_disagree_is_caught():
    assert "has left the data" in str(disagreement_alarm(np.linspace(0.03, 0.2, STEPS)))
    assert disagreement_alarm(0.05 + RNG.normal(0, 0.005, STEPS)) is None
    assert disagreement_alarm(np.linspace(0.001, 0.02, STEPS)) is None


def test_ends_ignore_missing_values():
    assert ends([1.0, np.nan, 1.0, 2.0, np.nan, 3.0]) == (1.0, 3.0)
    assert ends([1.0, 2.0, np.nan, 3.0]) is None
