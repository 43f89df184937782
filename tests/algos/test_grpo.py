"""GRPO: worked values, properties of advantages and surrogate, parts of a batch, and a learner that follows rewards."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.grpo import (
    GRPO,
    PAPER,
    GRPOOptions,
    LossType,
    Scale,
    aggregate,
    engine_correction,
    group_advantages,
    kl_estimate,
    ratios,
    surrogate,
)
from algos.objective import TokenScores
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.reports.metrics import define
from tests.support.language_policies import TablePolicy, TapePolicy, random_rollouts

NAN = math.nan
GENERATOR = torch.Generator()
PLAIN = GRPOOptions(vllm_importance_sampling_correction=False)
rewards_of = st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=4)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


# Advantages


def test_advantages_of_worked_groups() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0]])
    std = math.sqrt(1 / 3)  # of 1, 0, 0, 1, unbiased
    grouped = group_advantages(rewards)
    torch.testing.assert_close(grouped[0], torch.tensor([0.5, -0.5, -0.5, 0.5]) / (std + 1e-4))
    assert grouped[1].tolist() == [0.0] * 4
    torch.testing.assert_close(grouped[2], torch.tensor([-0.25, -0.25, -0.25, 0.75]) / (0.5 + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, "none")[2], torch.tensor([-0.25, -0.25, -0.25, 0.75]))
    scale = rewards.std() + 1e-4
    torch.testing.assert_close(group_advantages(rewards, "batch")[0], torch.tensor([0.5, -0.5, -0.5, 0.5]) / scale)


def test_a_failed_reward_call_counts_in_no_mean_and_has_no_advantage() -> None:
    rewards = torch.tensor([[1.0, NAN, 0.0, 1.0], [NAN, NAN, NAN, 1.0], [NAN] * 4])
    without = group_advantages(torch.tensor([[1.0, 0.0, 1.0]]))[0]
    found = group_advantages(rewards)
    torch.testing.assert_close(found[0], torch.stack([without[0], torch.tensor(0.0), without[1], without[2]]))
    assert found[1:].eq(0).all()


@pytest.mark.parametrize("scale", get_args(Scale))
@given(rewards=rewards_of)
def test_advantages_of_a_group_sum_to_zero(scale: str, rewards: list[list[float]]) -> None:
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), scale)
    assert advantages.sum(1).abs().max() < 1e-8


@pytest.mark.parametrize("scale", get_args(Scale))
@given(rewards=rewards_of, shift=st.integers(-3, 3))
def test_advantages_ignore_a_constant_added_to_the_rewards(scale: str, rewards: list[list[float]], shift: int) -> None:
    values = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(
        group_advantages(values + shift, scale), group_advantages(values, scale), atol=1e-8, rtol=1e-6
    )


@pytest.mark.parametrize("scale", get_args(Scale))
def test_equal_rewards_give_exactly_no_advantage_whatever_their_rounding(scale: str) -> None:
    rewards = torch.full((2, 16), 0.3)
    rewards[1, 0] = 0.9
    assert group_advantages(rewards, scale)[0].eq(0).all()


# Surrogate, ratios, KL, correction


def test_the_surrogate_of_worked_ratios() -> None:
    options = PAPER.replace(delta=3.0)
    ratio = column(1.0, 2.0, 2.0, 0.5, 0.5, 4.0, 1.3)
    advantages = column(1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 2.0)
    # Clipped above at 1.35 and below at 0.8, only where that lowers the objective; 4 is bounded by delta.
    expected = column(-1.0, -1.35, 2.0, -0.5, 0.8, 3.0, -2.6)
    torch.testing.assert_close(surrogate(ratio, advantages, options), expected)


def test_the_ratio_of_a_row_is_the_geometric_mean_of_its_tokens() -> None:
    log_ratio = torch.tensor([[math.log(2), math.log(8), 5.0]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(ratios(log_ratio, mask, "sequence"), column(4.0))
    torch.testing.assert_close(ratios(log_ratio, mask, "token")[0, :2], torch.tensor([2.0, 8.0]))


def test_the_kl_estimate_of_worked_values() -> None:
    logprobs = torch.tensor([math.log(0.5), math.log(0.25)])
    reference = torch.tensor([math.log(0.5), math.log(0.5)])
    torch.testing.assert_close(kl_estimate(logprobs, reference), torch.tensor([0.0, 2 - math.log(2) - 1]))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [[2.0, 3.0, 1.0], [0.5, 1.0, 1.0]]),
        ("token_mask", [[2.0, 0.0, 1.0], [0.5, 1.0, 1.0]]),
        ("sequence_truncate", [[3.0], [0.5]]),
        ("sequence_mask", [[0.0], [0.5]]),
    ],
)
def test_the_engines_correction_of_worked_values(mode: str, expected: list[list[float]]) -> None:
    options = GRPOOptions(vllm_importance_sampling_mode=mode)
    old = torch.tensor([[2.0, 8.0, 1.0], [0.5, 1.0, 9.0]]).log()
    rollout = torch.tensor([[0.0, 0.0, 0.0], [0.0, NAN, NAN]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    torch.testing.assert_close(engine_correction(old, rollout, mask, options), torch.tensor(expected))


# Aggregation


def test_each_loss_type_divides_a_worked_batch_as_it_says() -> None:
    losses = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    options = {name: GRPOOptions(loss_type=name, max_completion_length=10) for name in get_args(LossType)}
    found = {name: float(aggregate(losses, mask, item, 3 if name == "dapo" else 2)) for name, item in options.items()}
    assert found == pytest.approx({"grpo": (1.5 + 3) / 2, "dr_grpo": 6 / 20, "dapo": 2.0, "bnpo": 2.0})


def loss_of(options: GRPOOptions, batch: Any, policy: Any = None, denominator: int | None = None) -> torch.Tensor:
    return GRPO(options).loss(policy or TablePolicy(), batch, GENERATOR, denominator)[0]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("truncated", [False, True])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(loss_type: str, truncated: bool) -> None:
    options = GRPOOptions(loss_type=loss_type, mask_truncated_completions=truncated)
    batch, policy = random_rollouts(), TablePolicy()
    whole = loss_of(options, batch, policy)
    whole.backward()
    assert policy.table.grad is not None
    expected, policy.table.grad = policy.table.grad.clone(), None
    denominator = GRPO(options).denominator(batch)
    parts = [loss_of(options, batch.select(rows), policy, denominator) for rows in torch.arange(6).split([1, 3, 2])]
    torch.testing.assert_close(sum(parts), whole)
    for part in parts:
        part.backward()
    torch.testing.assert_close(policy.table.grad, expected)


def test_bnpo_in_parts_of_one_group_is_the_token_mean_of_each_group() -> None:
    batch, policy = random_rollouts(), TablePolicy()
    options = PLAIN.replace(loss_type="bnpo")
    parts = [loss_of(options, batch.select(rows), policy, len(batch)) for rows in torch.arange(6).split(3)]
    groups = [loss_of(PLAIN.replace(loss_type="dapo"), batch.select(rows)) for rows in torch.arange(6).split(3)]
    torch.testing.assert_close(sum(parts), sum(groups) / 2)


# The objective


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient() -> None:
    batch, policy = random_rollouts(), TablePolicy()
    loss_of(PLAIN, batch, policy).backward()
    assert policy.table.grad is not None
    found, policy.table.grad = policy.table.grad.clone(), None
    logprobs = policy.token_logprobs(batch).logprobs
    (-(logprobs * batch.advantages[:, None]).sum() / batch.num_tokens).backward()
    torch.testing.assert_close(found, policy.table.grad)


def test_the_gradient_raises_what_was_better_and_stops_beyond_the_clip() -> None:
    batch = random_rollouts()
    batch.old_logprobs = torch.full_like(batch.rollout_logprobs, -2.0)
    batch.advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    shift = column(0.1, 0.1, 1.0, -1.0, -1.0, 1.0)  # ratios 1.1, 1.1, 2.7, 0.37, 0.37, 2.7
    policy = TapePolicy(batch.old_logprobs + shift)
    loss_of(PLAIN, batch, policy).backward()
    assert policy.logprobs.grad is not None
    towards = [
        set((-row[mask]).sign().tolist()) for row, mask in zip(policy.logprobs.grad, batch.completion_mask, strict=True)
    ]
    assert towards == [{1.0}, {-1.0}, {0.0}, {0.0}, {1.0}, {-1.0}]


def test_without_advantages_there_is_no_gradient() -> None:
    batch, policy = random_rollouts(), TablePolicy()
    batch.advantages = torch.zeros(6)
    loss, metrics = GRPO(GRPOOptions()).loss(policy, batch, GENERATOR)
    loss.backward()
    assert policy.table.grad is not None
    assert policy.table.grad.eq(0).all()
    assert metrics["groups/with_signal"] == 0


def test_prompts_and_padding_change_nothing() -> None:
    batch = random_rollouts()
    before = loss_of(PLAIN, batch)
    outside = ~batch.completion_mask
    batch.rollout_logprobs = torch.where(outside, NAN, batch.rollout_logprobs)
    batch.input_ids = torch.where(~batch.attention_mask, 3, batch.input_ids)
    torch.testing.assert_close(loss_of(PLAIN, batch), before)


def test_the_metrics_of_a_worked_batch() -> None:
    batch = random_rollouts(num_groups=3, size=2, longest=1)
    batch.old_logprobs = torch.full_like(batch.rollout_logprobs, -2.0)
    batch.rollout_logprobs = batch.old_logprobs - 0.1 * torch.arange(6)[:, None]
    batch.advantages = torch.tensor([1.0, -1.0, 0.0, 0.0, 1.0, -1.0])
    batch.weight_version = torch.tensor([0, 1, 1, 0, 0, 0])
    policy = TapePolicy(batch.old_logprobs + torch.tensor([2.0, 2.0, 1.0, 1.0, 0.5, 0.5]).log()[:, None])
    _, metrics = GRPO(GRPOOptions(vllm_importance_sampling_clip_max=1.25)).loss(policy, batch, GENERATOR)
    expected = {
        "ratio/mean": 7 / 6,
        "ratio/min": 0.5,
        "ratio/max": 2.0,
        "clip/low": 1 / 6,
        "clip/high": 1 / 6,
        "clip/region": 2 / 6,
        "mismatch/mean": 0.25,
        "mismatch/max": 0.5,
        "mismatch/newest": 0.15,
        "groups/with_signal": 2 / 3,
        "text/tokens": 6,
        "importance/min": 0.0,
        "importance/max": math.exp(0.2),
        "importance/zero": 3 / 6,
    }
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_reference_pulls_the_policy_back_and_only_with_beta() -> None:
    batch = random_rollouts()
    batch.advantages = torch.zeros(6)
    policy, reference = TablePolicy(0), TablePolicy(1)
    objective = GRPO(PLAIN.replace(beta=0.5), reference=reference)
    loss, metrics = objective.loss(policy, batch, GENERATOR)
    torch.testing.assert_close(loss.detach(), 0.5 * metrics["kl"])
    loss.backward()
    assert reference.table.grad is None
    assert policy.table.grad is not None
    with torch.no_grad():
        policy.table.sub_(0.1 * policy.table.grad)
    assert objective.loss(policy, batch, GENERATOR)[1]["kl"] < metrics["kl"]
    with pytest.raises(ValueError, match="without a reference"):
        GRPO(PLAIN.replace(beta=0.5))
    with pytest.raises(ValueError, match="leave it out"):
        GRPO(PLAIN, reference=reference)


class Spy(TablePolicy):
    """Remembers the temperatures that it was asked for."""

    def token_logprobs(self, batch: Any, *, temperature: float | None = None, entropy: bool = False) -> TokenScores:
        self.asked = [*getattr(self, "asked", []), temperature]
        return super().token_logprobs(batch, temperature=temperature, entropy=entropy)


def test_a_prepared_batch_remembers_the_policy_before_its_steps() -> None:
    batch, policy = random_rollouts(), Spy()
    objective = GRPO(PLAIN.replace(temperature=0.7))
    prepared = objective.prepare(policy, batch)
    with torch.no_grad():
        policy.table.mul_(1.5)
    _, metrics = objective.loss(policy, prepared, GENERATOR)
    assert policy.asked == [0.7, 0.7]
    assert metrics["ratio/max"] > 1.05
    assert objective.loss(policy, batch, GENERATOR)[1]["ratio/max"] == 1


def test_a_learner_with_grpo_raises_the_reward_of_what_it_samples() -> None:
    """Bandit: a prompt of one token, an answer of one token, reward 1 for token 3."""
    policy = TablePolicy()
    learner = Learner(policy, seed=0)
    learner.add("grpo", GRPO(PAPER.replace(num_generations=16)), Optimiser(lr=0.3, steps=80, weight_decay=0.0))
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(40):
        batch = random_rollouts(num_groups=2, size=16, prompt=1, longest=1)
        with torch.no_grad():
            logprobs = policy.table[batch.input_ids[:, 0]].log_softmax(-1)
        drawn = torch.multinomial(logprobs.exp(), 1, generator=generator)
        batch.input_ids[:, 1:] = drawn
        batch.rollout_logprobs = torch.cat([torch.zeros(32, 1), logprobs.gather(1, drawn)], dim=1)
        rewards = (drawn[:, 0] == 3).float()
        batch.advantages = group_advantages(rewards.view(2, 16)).flatten()
        shares.append(float(rewards.mean()))
        metrics = learner.step("grpo", batch)
        assert metrics["mismatch/max"] < 1e-6
    assert sum(shares[-5:]) / 5 > 0.9 > 0.5 > sum(shares[:5]) / 5


# Options


def test_the_papers_preset_clips_to_its_bounds() -> None:
    assert PAPER.ratio_bounds == pytest.approx((0.8, 1.35))
    assert (PAPER.num_generations, PAPER.beta, PAPER.loss_type) == (16, 0.0, "dapo")


def test_options_under_trls_names_are_read() -> None:
    assert GRPOOptions(**{"epsilon": 0.1, "loss_type": "bnpo"}) == GRPOOptions(epsilon=0.1, loss_type="bnpo")
    assert GRPOOptions(**{"scale_rewards": False}).scale_rewards == "none"
    assert GRPOOptions(**{"scale_rewards": True}).scale_rewards == "group"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"entropy_coef": 0.1}, "entropy_coef is not supported: there is no entropy bonus"),
        ({"top_p": 0.9}, "top_p is not supported"),
        ({"epsilon_hihg": 0.3}, "did you mean 'epsilon_high'"),
        ({"loss_type": "cispo"}, "loss_type 'cispo' is not supported; choose one of grpo, dr_grpo, dapo, bnpo"),
        ({"importance_sampling_level": "row"}, "importance_sampling_level 'row'"),
        ({"vllm_importance_sampling_mode": "clip"}, "vllm_importance_sampling_mode 'clip'"),
        ({"num_generations": 1}, "num_generations is 1; it must be at least 2"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"epsilon": 1.5}, "ratios would be clipped to"),
        ({"delta": 1.1}, "delta is 1.1; it must exceed 1 \\+ epsilon_high = 1.2"),
        ({"vllm_importance_sampling_clip_min": 4.0}, "clip_min is 4.0 and _clip_max 3.0"),
    ],
)
def test_an_option_that_cannot_work_is_an_error_that_says_so(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOOptions(**values)


def test_every_metric_has_a_definition() -> None:
    objective = GRPO(PAPER.replace(beta=0.1), reference=TablePolicy(1))
    _, metrics = objective.loss(TablePolicy(), random_rollouts(), GENERATOR)
    assert [name for name in metrics if define(name) is None] == []
