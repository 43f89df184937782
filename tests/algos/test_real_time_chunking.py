"""Guided sampling: the mask by hand, a flow in closed form, and no guidance as a plain sampler."""

import math

import pytest
import torch

from algos.real_time_chunking import MAX_WEIGHT, guided_step, sample_guided, soft_mask


def gaussian(scale):
    """The exact flow of chunks that are normal with mean 0 and this covariance factor [n, n] over their commands.

    v = E[e - a | x_t] = ((1 - t) (-S) + t I) ((1 - t)^2 S + t^2 I)^-1 x_t with S = scale scale^T.
    """
    covariance, eye = scale @ scale.T, torch.eye(len(scale))

    def velocity(x_t, time):
        t = time[0]
        gain = (t * eye - (1 - t) * covariance) @ torch.linalg.inv((1 - t) ** 2 * covariance + t**2 * eye)
        return torch.einsum("ij,bja->bia", gain, x_t)

    return velocity


def test_the_mask_is_one_then_decays_to_zero_where_the_plan_ends():
    mask = soft_mask(8, left=5, late=2)
    share = [(5 - i) / 4 for i in (2, 3, 4)]
    wanted = [1, 1, *(c * (math.exp(c) - 1) / (math.e - 1) for c in share), 0, 0, 0]
    assert mask.tolist() == pytest.approx(wanted)
    assert soft_mask(4, left=0, late=3).tolist() == [0, 0, 0, 0]
    assert soft_mask(4, left=2, late=9).tolist() == [1, 1, 0, 0], "what is left ends before the new chunk is there"


def test_without_a_mask_the_sampler_is_the_plain_one():
    velocity, noise = gaussian(torch.randn(6, 6)), torch.randn(3, 6, 2)
    plain = noise
    for number in range(10):
        plain = plain - velocity(plain, torch.full((3,), 1 - number / 10)) / 10
    guided = sample_guided(velocity, noise, torch.randn(3, 6, 2), torch.zeros(3, 6, 1), 10)
    torch.testing.assert_close(guided, plain)


def test_a_step_is_the_formula_by_hand():
    """One number, v = k x: clean = (1 - t k) x, its derivative 1 - t k."""
    k, t, step, x, plan, mask = 0.5, 0.8, 0.1, 2.0, 3.0, 0.7
    clean = (1 - t * k) * x
    weight = min(MAX_WEIGHT, (t**2 + (1 - t) ** 2) / (t * (1 - t)))
    wanted = x - step * (k * x - weight * (plan - clean) * mask * (1 - t * k))
    found = guided_step(
        lambda x_t, time: k * x_t,
        *(torch.full((1, 1, 1), x), t, step, torch.full((1, 1, 1), plan), torch.full((1, 1, 1), mask)),
    )
    assert found.item() == pytest.approx(wanted)


def test_the_chunk_is_that_of_the_released_code():
    """Physical-Intelligence/real-time-chunking-kinetix, commit cc6c5f5, in jax.

    `FlowPolicy.realtime_action` with the same velocity, noise and plan, delay 2, horizon 6, schedule exp, weight 5, in
    5 steps; there t = 0 is noise.
    """
    count = torch.arange(24, dtype=torch.float64)
    mixing = (0.3 * torch.sin(1 + 0.7 * torch.outer(count + 1, count + 2))).float()

    def velocity(x_t, time):
        return (1 - time[0]) * x_t / 2 - x_t.tanh() - (x_t.flatten(1) @ mixing.T).view_as(x_t)

    noise, plan = torch.sin(count * 1.3).float().view(1, 8, 3), torch.cos(count * 0.9).float().view(1, 8, 3)
    found = sample_guided(velocity, noise, plan, soft_mask(8, 6, 2)[None, :, None], 5)
    wanted = [1.166567, -1.056102, 1.084131, -0.511538, -0.428775, 2.344353, -0.689139, 0.866126]
    torch.testing.assert_close(found[0, :, 0], torch.tensor(wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_held_commands_are_met_and_smooth_chunks_follow(seed):
    torch.manual_seed(seed)
    slots = torch.arange(12.0)
    covariance = torch.exp(-((slots[:, None] - slots) ** 2) / 18) + 1e-4 * torch.eye(12)  # smooth motions
    scale = torch.linalg.cholesky(covariance)
    velocity, noise, plan = gaussian(scale), torch.randn(64, 12, 1), scale @ torch.randn(64, 12, 1)
    mask = soft_mask(12, left=8, late=3)[None, :, None].expand(64, -1, -1)
    guided = sample_guided(velocity, noise, plan, mask, 50)
    free = sample_guided(velocity, noise, plan, torch.zeros_like(mask), 50)
    miss = [(one - plan)[:, :3].square().mean().sqrt().item() for one in (guided, free)]
    assert miss[0] < 0.35 * miss[1]
    jumps = [(one[:, 3] - plan[:, 2]).abs().mean().item() for one in (guided, free)]
    assert jumps[0] < 0.5 * jumps[1], "the first new command continues the old motion"
