"""Alarms: planted failures they must catch, healthy runs they must not."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.alarms import cap_alarm, collapse_alarm, nothing_learned_alarm, truncation_alarm
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
