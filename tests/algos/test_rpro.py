"""The RPRO objective on a fake policy: what is computed, what is shared, what is learned."""

import copy
from dataclasses import replace

import pytest
import torch

from algos.batch import TrajectoryBatch
from algos.flowpro import RPRO
from tests.algos.toy_training import recent, train
from tests.support.flow_policies import (
    FakePolicy,
    TapePolicy,
    check_accumulation,
    flow_batch,
    generator,
    gradients,
    preference_batch,
)

ALL = ("vision", "vlm", "expert")


def test_one_suffix_call_serves_winners_and_the_losers_that_differ():
    policy, reference = FakePolicy(0), FakePolicy(1)
    batch = preference_batch(6, num_identical=4)
    RPRO(reference, draws_per_sample=3, groups=ALL).loss(policy, batch, generator())
    assert policy.encode_calls == 1 and reference.encode_calls == 1
    assert [len(actions) for actions, *_ in policy.asked] == [(6 + 2) * 3]
    assert [len(actions) for actions, *_ in reference.asked] == [(6 + 2) * 3]


def test_winner_loser_policy_and_reference_share_noise_and_time():
    policy, reference = FakePolicy(0), FakePolicy(1)
    batch = preference_batch(4, num_identical=2)
    RPRO(reference, draws_per_sample=2, groups=ALL).loss(policy, batch, generator())
    actions, noise, time, rows = policy.asked[0]
    assert all(torch.equal(a, b) for a, b in zip(policy.asked[0], reference.asked[0], strict=True))
    assert rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1]
    assert torch.equal(noise[:4], noise[8:]) and torch.equal(time[:4], time[8:])
    assert torch.equal(actions[:8], batch.winner[rows[:8]]) and torch.equal(actions[8:], batch.loser[rows[8:]])
    assert len(time[:8].unique()) == 8


def test_the_loss_is_that_of_four_separate_passes():
    policy, reference = TapePolicy(0), FakePolicy(1)
    batch = preference_batch(5, num_identical=2)
    weights = {"beta": 2.0, "lambda_pro": 0.7, "lambda_sft": 1.3}
    loss, _ = RPRO(reference, **weights, groups=ALL).loss(policy, batch, generator())
    noise, time = policy.noise_tape[:5], policy.time_tape[:5]
    l_w, l_l, ref_w, ref_l = (
        model.flow_losses(model.encode(batch.observation), chunk, noise, time)
        for model in (policy, reference)
        for chunk in (batch.winner, batch.loser)
    )
    r_w, r_l = (weights["beta"] / 2 * (ref - own) for own, ref in ((l_w, ref_w), (l_l, ref_l)))
    log_sigmoid = torch.nn.functional.logsigmoid
    proximal = 0.5 * sum(log_sigmoid(r) + log_sigmoid(-r) for r in (r_w, r_l))
    expected = (-weights["lambda_pro"] * (log_sigmoid(r_w - r_l) + proximal) + weights["lambda_sft"] * l_w).mean()
    assert torch.allclose(loss, expected, atol=1e-6)


def test_draws_of_a_sample_are_averaged_before_the_reward():
    policy, reference = TapePolicy(0), FakePolicy(1)
    batch = preference_batch(3, num_identical=1)
    _, metrics = RPRO(reference, beta=2.0, draws_per_sample=4, groups=ALL).loss(policy, batch, generator())
    rows = torch.arange(3).repeat_interleave(4)
    noise, time = policy.noise_tape[:12], policy.time_tape[:12]
    own, ref = (
        model.flow_losses(model.encode(batch.observation), batch.winner[rows], noise, time, rows).view(3, 4).mean(1)
        for model in (policy, reference)
    )
    assert metrics["flow/winner"] == pytest.approx(float(own[:2].detach().mean()), rel=1e-5)
    assert metrics["reward/winner"] == pytest.approx(float((ref - own)[:2].detach().mean()), rel=1e-4)


def test_accumulating_eight_parts_equals_one_batch():
    policy, reference = TapePolicy(0), FakePolicy(1)
    objective = RPRO(reference, draws_per_sample=2, groups=ALL)
    check_accumulation(objective, policy, preference_batch(8, num_identical=3))


def test_the_reference_receives_no_gradient():
    policy, reference = FakePolicy(0), FakePolicy(1)
    RPRO(reference, groups=ALL).loss(policy, preference_batch(4, 1), generator())[0].backward()
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert all(parameter.grad is not None for parameter in policy.parameters())


def test_with_frozen_towers_the_reference_reads_the_policys_prefix():
    policy = FakePolicy(0)
    reference = copy.deepcopy(policy)
    objective = RPRO(reference, groups=("expert",))
    loss, metrics = objective.loss(policy, preference_batch(4, 1), generator())
    loss.backward()
    assert objective.shares_prefix and policy.encode_calls == 1 and reference.encode_calls == 0
    assert policy.vlm.weight.grad is None and policy.expert[0].weight.grad is not None
    assert metrics["reward/winner"] == 0 and metrics["reward/margin"] == 0


def test_stored_prefixes_give_the_same_loss_without_encoding():
    policy = FakePolicy(0)
    reference = copy.deepcopy(policy)
    torch.nn.init.normal_(reference.expert[2].weight, std=0.1)
    batch = preference_batch(4, 1)
    objective = RPRO(reference, groups=("expert",))
    expected, _ = objective.loss(policy, batch, generator())
    with torch.no_grad():
        stored = replace(batch, observation=None, prefix=policy.encode(batch.observation))
    policy.encode_calls = 0
    loss, _ = objective.loss(policy, stored, generator())
    assert policy.encode_calls == 0 and torch.equal(loss, expected)
    order = torch.tensor([2, 0])
    assert torch.equal(stored.select(order).prefix.features, stored.prefix.features[order])


def test_a_stored_reference_prefix_serves_a_policy_that_trains_its_towers():
    policy, reference = FakePolicy(0), FakePolicy(1)
    batch = preference_batch(4, 1)
    objective = RPRO(reference, groups=ALL)
    expected, _ = objective.loss(policy, batch, generator())
    with torch.no_grad():
        stored = replace(batch, reference_prefix=reference.encode(batch.observation))
    reference.encode_calls = 0
    loss, _ = objective.loss(policy, stored, generator())
    assert torch.equal(loss, expected) and reference.encode_calls == 0


def test_a_stored_prefix_of_trained_towers_is_refused():
    policy = FakePolicy(0)
    batch = preference_batch(2, 1)
    stored = replace(batch, prefix=policy.encode(batch.observation))
    with pytest.raises(ValueError, match="store it only for"):
        RPRO(FakePolicy(1), groups=ALL).loss(policy, stored, generator())


def test_identical_pairs_alone_have_no_contrast_and_no_metrics_of_real_pairs():
    policy, reference = FakePolicy(0), FakePolicy(1)
    objective = RPRO(reference, lambda_sft=0.0, proximal=False, groups=ALL)
    loss, metrics = objective.loss(policy, preference_batch(3, 3), generator())
    loss.backward()
    assert torch.count_nonzero(gradients(policy)) == 0
    assert "flow/winner" not in metrics and "reward/accuracy" not in metrics and "flow/identical" in metrics
    assert metrics["gradient/preference"] == 0


def test_metrics_say_where_the_rows_came_from():
    _, metrics = RPRO(FakePolicy(1)).loss(FakePolicy(0), preference_batch(4, 1), generator())
    assert metrics["rows/new"] == 0.75 and metrics["rows/older"] == 0 and metrics["rows/demonstrations"] == 0.25
    assert metrics["weight_version"] == 3
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_the_gradient_norm_metrics_are_the_norms_of_the_terms_by_autograd():
    policy, reference = FakePolicy(0), FakePolicy(1)
    batch = preference_batch(5, num_identical=2)
    seen = {}
    flow_losses = policy.flow_losses

    def remember(*arguments):
        seen["losses"] = flow_losses(*arguments)
        return seen["losses"]

    policy.flow_losses = remember
    common = {"beta": 3.0, "groups": ALL}
    for term, weights in {"preference": (0.5, 0.0, False), "sft": (0.0, 2.0, True)}.items():
        lambda_pro, lambda_sft, proximal = weights
        objective = RPRO(reference, lambda_pro=lambda_pro, lambda_sft=lambda_sft, proximal=proximal, **common)
        loss, metrics = objective.loss(policy, batch, generator())
        (gradient,) = torch.autograd.grad(loss, seen["losses"])
        assert float(metrics[f"gradient/{term}"]) == pytest.approx(float(gradient.norm()), rel=1e-5)


def trajectory_batch() -> TrajectoryBatch:
    """Pair 0: two winner rows, three loser rows; pair 1: a demonstration; pair 2: one and one, interleaved."""
    rows = flow_batch(8)
    pair = torch.tensor([0, 0, 2, 0, 1, 2, 0, 0])
    is_winner = torch.tensor([True, False, True, True, True, False, False, False])
    source = torch.tensor([0, 0, 0, 0, 2, 0, 0, 0])
    return TrajectoryBatch(rows.observation, rows.actions, pair, is_winner, source, weight_version=torch.zeros(8))


def test_trajectory_pairs_are_compared_by_their_mean_losses():
    policy, reference = TapePolicy(0), FakePolicy(1)
    batch = trajectory_batch()
    loss, metrics = RPRO(reference, beta=2.0, groups=ALL).loss(policy, batch, generator())
    own, ref = (
        model.flow_losses(model.encode(batch.observation), batch.actions, policy.noise_tape[:8], policy.time_tape[:8])
        for model in (policy, reference)
    )
    gain = (ref - own).detach()
    winner = torch.stack([gain[[0, 3]].mean(), gain[4], gain[2]])
    loser = torch.stack([gain[[1, 6, 7]].mean(), gain[4], gain[5]])
    log_sigmoid = torch.nn.functional.logsigmoid
    assert metrics["loss/preference"] == pytest.approx(float(-log_sigmoid(winner - loser).mean()), rel=1e-5)
    assert metrics["reward/margin"] == pytest.approx(float((winner - loser)[[0, 2]].mean()), rel=1e-4)
    assert metrics["flow/identical"] == pytest.approx(float(own.detach()[4]), rel=1e-5)
    assert loss.isfinite() and len(batch) == 3


def test_a_trajectory_pair_without_winner_rows_is_refused():
    batch = trajectory_batch()
    batch.is_winner[4] = False
    with pytest.raises(ValueError, match="pair 1 has no winner rows"):
        RPRO(FakePolicy(1), groups=ALL).loss(FakePolicy(0), batch, generator())


def test_flow_dpo_alone_raises_both_losses_while_rpro_keeps_them_bounded():
    dpo = train(400, beta=30.0, lambda_sft=0.0, proximal=False)
    rpro = train(400, beta=1.0)
    assert recent(dpo, "flow/winner") > 2 * recent(dpo, "flow/winner_reference")
    assert recent(dpo, "flow/loser") > 2 * recent(dpo, "flow/loser_reference")
    assert recent(dpo, "reward/accuracy") > 0.9, "accuracy does not show the collapse"
    assert recent(rpro, "flow/winner") < recent(rpro, "flow/winner_reference")
    assert recent(rpro, "flow/identical") < recent(rpro, "flow/identical_reference")
    assert recent(rpro, "flow/loser") < 10 * recent(rpro, "flow/loser_reference")
