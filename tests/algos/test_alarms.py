"""Alarms of training and of rewards: planted failures they must catch, healthy runs they must not."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.alarms import (
    cap_alarm,
    collapse_alarm,
    disagreement_alarm,
    dominance_alarm,
    ends,
    format_alarm,
    length_alarm,
    nothing_learned_alarm,
    proxy_alarm,
    truncation_alarm,
    variance_alarm,
    variance_shares,
)
from tests.algos.toy_training import train


def steps(num: int, **metrics: float) -> list[dict[str, float]]:
    return [dict(metrics) for _ in range(num)]


def test_collapse_is_caught_in_flow_dpo_alone():
    message = collapse_alarm(train(400, beta=30.0, lambda_sft=0.0, proximal=False))
    assert message is not None and message.startswith("collapse")


@pytest.mark.parametrize("beta", [50.0, 100.0])
def test_the_cap_is_caught_when_beta_times_lambda_is_far_too_large(beta):
    message = cap_alarm(train(400, beta=beta))
    assert message is not None and message.startswith("cap")


@pytest.mark.parametrize("lambda_sft", [0.0, 1.0])
def test_the_cap_is_caught_with_and_without_the_sft_term(lambda_sft):
    assert cap_alarm(train(400, beta=100.0, lambda_sft=lambda_sft)) is not None


@pytest.mark.parametrize(("beta", "lambda_pro"), [(1.0, 1.0), (30.0, 1 / 30)])
def test_a_healthy_run_raises_no_alarm_at_any_step(beta, lambda_pro):
    history = train(400, beta=beta, lambda_pro=lambda_pro)
    for end in range(50, len(history) + 1, 25):
        assert collapse_alarm(history[:end]) is None and cap_alarm(history[:end]) is None


def test_a_reference_that_already_fits_the_winners_is_no_cap():
    fitted = {"flow/winner": 0.02, "flow/winner_reference": 0.02, "capped/winner": 0.0}
    assert cap_alarm(steps(60, **fitted)) is None
    assert cap_alarm(steps(60, **fitted | {"capped/winner": 0.5})) is not None


def test_an_alarm_waits_for_a_full_window_of_steps_that_log_its_metrics():
    bad = {"flow/identical": 2.0, "flow/identical_reference": 1.0}
    assert collapse_alarm(steps(49, **bad), window=50) is None
    assert collapse_alarm(steps(49, **bad) + steps(10, other=1.0), window=50) is None
    assert collapse_alarm(steps(49, **bad) + steps(10, other=1.0) + steps(1, **bad), window=50) is not None


def test_the_margin_of_the_collapse_alarm_is_relative_to_the_reference():
    history = steps(50, **{"flow/identical": 0.115, "flow/identical_reference": 0.1})
    assert collapse_alarm(history, margin=0.2) is None and collapse_alarm(history, margin=0.1) is not None


def truncated(*shares):
    return [{"rollouts/truncated": share} for share in shares]


def test_answers_that_no_longer_end_are_caught_while_it_happens():
    rising = truncated(*np.linspace(0.02, 1.0, 30), *[1.0] * 10)
    fired = [end for end in range(1, 41) if truncation_alarm(rising[:end]) is not None]
    assert fired == list(range(32, 41)), "the second step in which no answer ended"
    message = truncation_alarm(rising)
    assert message is not None and message.startswith("length collapse: 100 % of the answers")
    assert "2 % at the beginning" in message


def test_answers_that_end_raise_no_alarm_also_where_one_step_does_not():
    steady = truncated(*[0.3, 0.5, 0.2, 0.4] * 10)
    assert all(truncation_alarm(steady[:end]) is None for end in range(41))
    assert truncation_alarm([*steady, *truncated(1.0, 1.0, 1.0), *steady[:7]]) is None


def test_the_length_alarm_waits_for_a_full_window():
    assert truncation_alarm(truncated(*[1.0] * 9)) is None and truncation_alarm(truncated(*[1.0] * 10)) is not None


def grpo(signal=0.0, spread=0.0, reward=0.0, grad_norm=0.0):
    return {
        "groups/with_signal": signal,
        "rollouts/spread": spread,
        "reward/mean": reward,
        "grad_norm": grad_norm,
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (grpo(reward=1.0), "all answers are right"),
        (grpo(reward=0.0), "all answers are wrong"),
        (grpo(reward=0.4), r"the reward is constant within every group \(mean 0.4\)"),
        (grpo(spread=0.01, reward=0.4), "differ by 0.01 at most"),
        ({"groups/with_signal": 0.0}, "the reward is constant"),  # no batch was learned from
        (grpo(signal=1.0, spread=0.3, reward=0.4), "the gradient is zero"),
        ({"grad_norm": 0.0, "loss": 1.0}, "the gradient is zero"),
        (grpo(signal=math.nan, reward=1.0), "all answers are right"),
        (grpo(signal=None, reward=1.0), "all answers are right"),
        (grpo(signal=1.0, spread=0.3, reward=0.4, grad_norm=math.nan), "the gradient is zero"),
    ],
)
def test_steps_that_teach_nothing_are_named_with_their_reason(line, reason):
    message = nothing_learned_alarm(steps(10, **line))
    assert message is not None and message.startswith("nothing learned: ") and re.search(reason, message)
    assert nothing_learned_alarm(steps(9, **line)) is None


@given(st.integers(0, 9), st.lists(st.booleans(), min_size=0, max_size=20))
def test_one_step_that_teaches_within_the_window_is_enough_and_probes_do_not_count(place, probes):
    history = steps(10, **grpo(reward=1.0))
    history[place] = grpo(signal=0.1, spread=0.1, reward=0.9, grad_norm=1e-8)
    mixed = [
        line for line, probe in zip(history, probes + [False] * 10, strict=False) for line in [line] + [{}] * probe
    ]
    assert nothing_learned_alarm(mixed) is None
    assert nothing_learned_alarm(mixed + steps(10, **grpo(reward=1.0))) is not None


@pytest.mark.parametrize("alarm", [collapse_alarm, cap_alarm, truncation_alarm])
def test_an_alarm_that_meets_nan_fires(alarm):
    names = ("flow/identical", "flow/identical_reference", "flow/winner", "flow/winner_reference", "capped/winner")
    assert alarm(steps(60, **dict.fromkeys((*names, "rollouts/truncated"), math.nan))) is not None


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
