"""Values and gradients of the RPRO loss, by hand and in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.alarms import cap_warning, loss_drop_ceiling
from algos.flowpro import (
    gradient_metrics,
    implicit_reward,
    loss_coefficients,
    preference_loss,
    proximal_loss,
    rpro_loss,
)

rewards = st.floats(-8, 8)
positive = st.floats(0.05, 30)


def pro(r_w: float, r_l: float) -> float:
    rewards = torch.tensor([r_w], dtype=torch.float64), torch.tensor([r_l], dtype=torch.float64)
    return float(preference_loss(*rewards) + proximal_loss(*rewards))


def test_pro_loss_has_its_hand_values():
    assert pro(0, 0) == pytest.approx(3 * math.log(2))
    assert pro(1, -1) == pytest.approx(1.7535, abs=5e-5)
    assert pro(-4, -6) == pytest.approx(5.1476, abs=5e-5)


def test_plain_preference_does_not_see_the_level_of_the_rewards():
    near, far = preference_loss(torch.tensor([1.0, -4.0]), torch.tensor([-1.0, -6.0])).tolist()
    assert near == pytest.approx(0.1269, abs=5e-5) and far == pytest.approx(near)


def test_pro_loss_is_least_at_opposite_rewards_of_0_7563():
    least = pro(0.7563, -0.7563)
    assert least == pytest.approx(1.7251, abs=5e-5)
    assert all(pro(0.7563 + a, -0.7563 + b) > least for a in (-0.05, 0, 0.05) for b in (-0.05, 0, 0.05) if a or b)


@given(rewards, rewards)
def test_preference_is_a_linear_term_and_its_own_regulariser(r_w, r_l):
    x = torch.tensor([r_w - r_l], dtype=torch.float64)
    log_sigmoid = torch.nn.functional.logsigmoid
    split = -x / 2 - 0.5 * (log_sigmoid(x) + log_sigmoid(-x))
    assert torch.allclose(-log_sigmoid(x), split)


def test_reward_is_positive_when_the_policy_fits_better_than_the_reference():
    reward = implicit_reward(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), beta=4.0)
    assert reward.tolist() == [2.0, -2.0]


def losses_of(r_w: float, r_l: float, beta: float) -> list[torch.Tensor]:
    """Policy and reference losses that have these rewards, policy's with gradients."""
    reference = torch.tensor([20.0, 25.0], dtype=torch.float64)
    policy = (reference - 2 / beta * torch.tensor([r_w, r_l], dtype=torch.float64)).unbind()
    return [*(loss.reshape(1).requires_grad_() for loss in policy), *(loss.reshape(1) for loss in reference.unbind())]


@given(rewards, rewards, positive, positive, positive, st.booleans())
def test_coefficients_are_the_gradients_of_the_loss(r_w, r_l, beta, lambda_pro, lambda_sft, proximal):
    weights = {"beta": beta, "lambda_pro": lambda_pro, "lambda_sft": lambda_sft, "proximal": proximal}
    losses = losses_of(r_w, r_l, beta)
    loss, parts = rpro_loss(*losses, **weights)
    found = torch.cat(torch.autograd.grad(loss, losses[:2]))
    terms = loss_coefficients(parts["reward_winner"].detach(), parts["reward_loser"].detach(), **weights)
    expected = sum(torch.cat(pair) for pair in terms.values())
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@given(rewards, rewards, positive)
def test_gradients_of_pro_loss_are_those_of_the_table(r_w, r_l, beta):
    losses = losses_of(r_w, r_l, beta)
    loss, _ = rpro_loss(*losses, beta=beta, lambda_pro=1.0, lambda_sft=0.0)
    winner, loser = (float(grad) for grad in torch.autograd.grad(loss, losses[:2]))
    s = lambda value: 1 / (1 + math.exp(-value))  # noqa: E731
    x = r_w - r_l
    assert winner == pytest.approx(beta / 2 * (s(-x) - s(r_w) + 0.5), abs=1e-6 * beta)
    assert loser == pytest.approx(-beta / 2 * (s(-x) + s(r_l) - 0.5), abs=1e-6 * beta)


def test_at_the_start_winner_and_loser_are_pulled_with_a_quarter_of_beta():
    losses = losses_of(0.0, 0.0, beta=2.0)
    loss, _ = rpro_loss(*losses, beta=2.0, lambda_pro=1.0, lambda_sft=0.0)
    assert [float(grad) for grad in torch.autograd.grad(loss, losses[:2])] == [0.5, -0.5]


@given(rewards, positive, positive, positive)
def test_an_identical_pair_has_no_contrast_and_the_coefficient_of_the_facts(r, beta, lambda_pro, lambda_sft):
    losses = losses_of(r, r, beta)
    same, reference = losses[0], losses[2]
    loss, parts = rpro_loss(same, same, reference, reference, beta=beta, lambda_pro=lambda_pro, lambda_sft=lambda_sft)
    (contrast,) = torch.autograd.grad(parts["preference"].sum(), same, retain_graph=True)
    (total,) = torch.autograd.grad(loss, same)
    assert float(contrast) == 0.0
    expected = lambda_sft - lambda_pro * beta * (1 / (1 + math.exp(-r)) - 0.5)
    assert float(total) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_no_gradient_flows_into_the_reference():
    losses = [torch.rand(3, requires_grad=True) for _ in range(4)]
    rpro_loss(*losses, beta=1.0, lambda_pro=1.0, lambda_sft=1.0)[0].backward()
    assert losses[0].grad is not None and losses[1].grad is not None
    assert losses[2].grad is None and losses[3].grad is None


def test_flow_dpo_is_rpro_without_the_proximal_term():
    losses = [torch.rand(5) for _ in range(4)]
    loss, parts = rpro_loss(*losses, beta=3.0, lambda_pro=0.5, lambda_sft=0.0, proximal=False)
    assert torch.equal(parts["proximal"], torch.zeros(5))
    assert loss == pytest.approx(0.5 * float(parts["preference"].mean()))


def test_the_denominator_is_an_argument():
    losses = [torch.rand(4) for _ in range(4)]
    weights = {"beta": 1.0, "lambda_pro": 1.0, "lambda_sft": 1.0}
    whole, _ = rpro_loss(*losses, **weights)
    halves = [rpro_loss(*(loss[part] for loss in losses), **weights, denominator=4)[0] for part in ([0, 1], [2, 3])]
    assert torch.allclose(whole, halves[0] + halves[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"lambda_pro": -1.0}, "lambda_pro is -1.0"),
        ({"lambda_sft": float("nan")}, "lambda_sft is nan"),
        ({"lambda_pro": 0.0, "lambda_sft": 0.0}, "both 0"),
    ],
)
def test_impossible_weights_are_named(change, message):
    weights = {"beta": 1.0, "lambda_pro": 1.0, "lambda_sft": 1.0} | change
    with pytest.raises(ValueError, match=message):
        rpro_loss(*[torch.rand(2) for _ in range(4)], **weights)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(torch.rand(3), "different lengths"), (torch.rand(2, 2), "shape"), (torch.ones(2, dtype=torch.int64), "int64")],
)
def test_losses_of_another_shape_or_type_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        rpro_loss(*[torch.rand(2) for _ in range(3)], bad, beta=1.0, lambda_pro=1.0, lambda_sft=1.0)


def test_a_loss_that_is_not_a_number_comes_out_as_one():
    losses = [torch.rand(2) for _ in range(3)]
    loss, _ = rpro_loss(torch.tensor([float("nan"), 1.0]), *losses, beta=1.0, lambda_pro=1.0, lambda_sft=1.0)
    assert loss.isnan()


@pytest.mark.parametrize(
    ("beta", "identical", "winner"),
    [(1, math.inf, math.inf), (3, 1.07, math.inf), (10, 0.081, 0.28), (30, 0.009, 0.063), (100, 0.0008, 0.016)],
)
def test_ceilings_are_those_of_the_prototype(beta, identical, winner):
    assert loss_drop_ceiling(beta, 1.0, 1.0) == pytest.approx((identical, winner), rel=0.06)


def test_at_the_ceiling_the_coefficient_is_zero():
    identical, _ = loss_drop_ceiling(10.0, 1.0, 1.0)
    r = torch.tensor([0.5 * 10.0 * identical])
    terms = loss_coefficients(r, r, beta=10.0, lambda_pro=1.0, lambda_sft=1.0)
    assert sum(float(winner + loser) for winner, loser in terms.values()) == pytest.approx(0, abs=1e-5)


def test_the_cap_is_warned_about_with_its_numbers_and_only_beyond_it():
    assert cap_warning(1.0, 1.0, 1.0) is None and cap_warning(30.0, 1 / 15, 1.0) is None
    three, ten = cap_warning(3.0, 1.0, 1.0), cap_warning(10.0, 1.0, 1.0)
    assert three is not None and "beta * lambda_pro = 3" in three and "1.07" in three and "winners not" not in three
    assert ten is not None and "0.0811" in ten and "winners not more than 0.28" in ten and "lambda_pro = 0.2" in ten
    assert "positive lambda_sft" in (cap_warning(1.0, 1.0, 0.0) or "")


def test_gradient_shares_sum_to_one_and_identical_pairs_have_no_share_of_preference():
    r_w, r_l = torch.tensor([0.3, 0.5]), torch.tensor([0.3, 0.5])
    terms = loss_coefficients(r_w, r_l, beta=2.0, lambda_pro=1.0, lambda_sft=1.0)
    metrics = gradient_metrics(terms, identical=torch.tensor([True, True]))
    assert metrics["gradient/preference"] == 0
    shares = [value for name, value in metrics.items() if name.startswith("gradient_share/")]
    assert float(sum(shares)) == pytest.approx(1.0)
