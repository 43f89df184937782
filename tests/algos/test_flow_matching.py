"""The flow-matching equations and the imitation objective."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.flow_matching import (
    FlowMatching,
    chunk_loss,
    draw_flow,
    interpolate,
    loss_weight,
    velocity_from_clean,
    velocity_target,
)
from tests.support.flow_policies import (
    FakePolicy,
    TapePolicy,
    euler_sample,
    flow_batch,
    generator,
    preference_batch,
)

ALL = ("vision", "vlm", "expert")


def chunks(num: int, seed: int) -> torch.Tensor:
    return torch.randn(num, 2, 4, generator=generator(seed))


def test_time_one_is_noise_and_time_zero_is_the_action():
    actions, noise = chunks(3, 0), chunks(3, 1)
    assert torch.equal(interpolate(actions, noise, torch.ones(3)), noise)
    assert torch.equal(interpolate(actions, noise, torch.zeros(3)), actions)


@given(st.floats(0.05, 0.95))
def test_the_velocity_is_the_derivative_of_the_path(time):
    actions, noise, h = chunks(1, 0).double(), chunks(1, 1).double(), 1e-4
    points = [interpolate(actions, noise, torch.tensor([time + step], dtype=torch.float64)) for step in (h, -h)]
    assert torch.allclose((points[0] - points[1]) / (2 * h), velocity_target(actions, noise), atol=1e-8)


@given(st.floats(0.01, 1.0))
def test_the_true_clean_chunk_gives_the_true_velocity(time):
    actions, noise, t = chunks(2, 0), chunks(2, 1), torch.full((2,), time)
    x_t = interpolate(actions, noise, t)
    assert torch.allclose(velocity_from_clean(x_t, actions, t), velocity_target(actions, noise), atol=1e-4)


def test_the_clipped_weight_divides_the_clean_error_by_the_larger_of_time_and_clip():
    time = torch.tensor([0.1, 0.3, 0.6])
    actions, noise, clean = chunks(3, 0), chunks(3, 1), chunks(3, 2)
    velocity = velocity_from_clean(interpolate(actions, noise, time), clean, time)
    losses = chunk_loss(velocity, velocity_target(actions, noise), loss_weight(time, 0.3), num_dims=4)
    expected = (clean - actions).square().mean(dim=(1, 2)) / time.clamp(min=0.3) ** 2
    assert torch.allclose(losses, expected, rtol=1e-4)
    assert torch.equal(loss_weight(time, None), torch.ones(3))


def test_padded_action_dims_carry_no_loss():
    velocity, target = chunks(2, 0), chunks(2, 1)
    changed = velocity.clone()
    changed[..., 3] += 5
    weight = torch.ones(2)
    assert torch.equal(chunk_loss(velocity, target, weight, 3), chunk_loss(changed, target, weight, 3))


def test_euler_steps_of_the_true_velocity_end_at_the_action():
    actions, noise = chunks(3, 0), chunks(3, 1)
    times = []

    def velocity(x_t, time):
        times.append(float(time[0]))
        return velocity_target(actions, noise)

    assert torch.allclose(euler_sample(velocity, noise, 5), actions, atol=1e-6)
    assert times == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_euler_converges_on_a_velocity_that_changes_with_time():
    """dx/dt = x from t = 1 to 0 multiplies by 1/e."""
    noise = torch.ones(1, 2, 4, dtype=torch.float64)
    errors = [float((euler_sample(lambda x, t: x, noise, n) - torch.e**-1).abs().max()) for n in (10, 20, 40)]
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2]


def test_draws_of_a_row_are_neighbours_and_differ():
    policy = FakePolicy()
    noise, time, rows = draw_flow(policy, flow_batch(3), 2, generator())
    assert rows.tolist() == [0, 0, 1, 1, 2, 2]
    assert noise.shape == (6, 2, 4) and len(time.unique()) == 6


def test_the_loss_is_the_mean_over_rows_and_draws_with_one_prefix():
    policy, batch = TapePolicy(), flow_batch(4)
    loss, metrics = FlowMatching(draws_per_sample=3).loss(policy, batch, generator())
    assert policy.encode_calls == 1 and len(policy.asked) == 1
    rows = torch.arange(4).repeat_interleave(3)
    losses = policy.flow_losses(
        policy.encode(batch.observation), batch.actions[rows], policy.noise_tape[:12], policy.time_tape[:12], rows
    )
    assert torch.allclose(loss, losses.mean()) and metrics["flow/loss"] == loss.detach()


def test_on_preference_pairs_only_the_winner_is_imitated():
    policy, batch = FakePolicy(), preference_batch(4, 1)
    FlowMatching().loss(policy, batch, generator())
    assert torch.equal(policy.asked[0][0], batch.winner)


def test_with_frozen_towers_only_the_expert_gets_a_gradient_and_a_stored_prefix_serves():
    policy, batch = FakePolicy(), flow_batch(4)
    objective = FlowMatching(groups=("expert",))
    expected, _ = objective.loss(policy, batch, generator())
    expected.backward()
    assert policy.vlm.weight.grad is None and policy.expert[0].weight.grad is not None
    stored = replace(batch, observation=None, prefix=policy.encode(batch.observation))
    assert torch.equal(objective.loss(policy, stored, generator())[0], expected)
    with pytest.raises(ValueError, match="store it only for"):
        FlowMatching(groups=ALL).loss(policy, stored, generator())


def test_fewer_than_one_draw_is_refused():
    with pytest.raises(ValueError, match="draws_per_sample is 0"):
        FlowMatching(draws_per_sample=0)
