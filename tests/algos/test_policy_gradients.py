"""Policy gradients of flow policies: formulas by hand, torch.distributions, an exact flow, and what holds at the old
policy."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from algos.batch import ExploredBatch
from algos.policy import FlowModel, PolicySpec
from algos.policy_gradients.clipped import gaussian_logprob, path_logprobs, sample_path
from algos.policy_gradients.flow_grpo import FlowGRPO, sde_sigma, sde_transition
from algos.policy_gradients.fpo import FPO
from algos.policy_gradients.reinflow import NoiseNet, ReinFlow, noisy_transition
from tests.support.flow_policies import euler_sample, generator, gradients

SPEC = PolicySpec(chunk_size=2)
C, A, E, STEPS = 2, SPEC.command_size, SPEC.state_size, 4
BOUNDS = (0.1, 0.4)


class Linear(FlowModel):
    """The velocity is linear in all that it reads."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        torch.manual_seed(0)
        self.layer = nn.Linear(E + C * A + 1, C * A)

    def encode(self, observation):
        return observation.state

    def velocity(self, prefix, x_t, time):
        return self.layer(torch.cat([prefix, x_t.flatten(1), time[:, None]], 1)).view_as(x_t)


def explored(dtype: torch.dtype = torch.float32) -> ExploredBatch:
    state = torch.randn(8, E, generator=generator(1), dtype=dtype)
    path = 0.5 * torch.randn(8, STEPS + 1, C, A, generator=generator(2), dtype=dtype)
    advantages = torch.tensor([1.0, -1.0], dtype=dtype).repeat(4)
    executed = (torch.arange(C) < torch.arange(8)[:, None] % 2 + 1)[:, :, None].expand(8, C, A)
    return ExploredBatch(None, path, advantages, state, executed, prefix=state)


OBJECTIVES = {
    "flow_grpo": lambda: FlowGRPO(noise=0.7),
    "reinflow": lambda: ReinFlow(NoiseNet(E, (C, A), BOUNDS).double()),
    "fpo": lambda: FPO(draws=3, scale=5.0),
}


@pytest.fixture(params=OBJECTIVES)
def prepared(request):
    """In float64, since log-probabilities of hundreds are compared."""
    policy, objective = Linear(SPEC).double(), OBJECTIVES[request.param]()
    return policy, objective, objective.prepare(policy, explored(torch.float64), generator())


def gaussian(scale: float):
    """The exact flow of numbers that are normal with mean 0 and this standard deviation."""

    def velocity(x_t, time):
        t = time[:, None, None]
        return (t - (1 - t) * scale**2) / ((1 - t) ** 2 * scale**2 + t**2) * x_t

    return velocity


def test_marginals_of_the_sde_are_those_of_the_ode_at_every_time():
    num, steps, scale = 20_000, 100, 0.5
    noise = torch.randn(num, 1, 1, generator=generator())
    draws = torch.randn(steps, num, 1, 1, generator=generator(1))
    sde = sample_path(sde_transition(gaussian(scale), 0.7), noise, draws)
    ode = sample_path(sde_transition(gaussian(scale), 0.0), noise, draws)
    for number in (25, 50, 75, 100):
        t = 1 - number / steps
        exact = math.hypot(t, (1 - t) * scale)
        for path in (sde, ode):
            assert path[:, number].mean().item() == pytest.approx(0, abs=0.02)
            assert path[:, number].std().item() == pytest.approx(exact, rel=0.03)
    mixed = torch.corrcoef(torch.stack([sde[:, -1].flatten(), noise.flatten()]))[0, 1]
    assert mixed < 0.9, "the noise on the way counts"


def test_without_noise_a_path_is_the_sampler():
    policy, noise = Linear(SPEC), torch.randn(3, C, A)
    path = sample_path(
        sde_transition(lambda x, t: policy.velocity(torch.ones(3, E), x, t), 0.0), noise, torch.ones(10, 3, C, A)
    )
    torch.testing.assert_close(path[:, -1], policy.sample_actions(torch.ones(3, E), noise))
    torch.testing.assert_close(
        path[:, -1], euler_sample(lambda x, t: policy.velocity(torch.ones(3, E), x, t), noise, 10)
    )


def test_a_step_of_the_sde_by_hand():
    """x = 2, v = 0.5, t = 0.8, step = 0.1, a = 0.7: sigma^2 = 0.49 * 4 = 1.96."""
    mean, std = sde_transition(lambda x, t: torch.full_like(x, 0.5), 0.7)(torch.full((1, 1, 1), 2.0), 0.8, 0.1)
    assert mean.item() == pytest.approx(2 - 0.1 * (0.5 + 1.96 / 1.6 * (2 + 0.2 * 0.5)))
    assert std.item() == pytest.approx(1.4 * math.sqrt(0.1))
    assert sde_sigma(1.0, 0.1, 0.7) == sde_sigma(0.9, 0.1, 0.7) == pytest.approx(0.7 * 3)


def test_logprobs_are_those_of_torch():
    x, mean, std = (torch.randn(4, C, A, generator=generator(seed)) for seed in range(3))
    std = std.abs() + 0.1
    counted = torch.rand(4, C, A, generator=generator(3)) < 0.5
    wanted = Normal(mean, std).log_prob(x)
    found = gaussian_logprob(x, mean, std, torch.ones(4, C, A, dtype=torch.bool))
    torch.testing.assert_close(found, wanted.sum((1, 2)))
    torch.testing.assert_close(gaussian_logprob(x, mean, std, counted), (wanted * counted).sum((1, 2)))
    batch, noise = explored(), NoiseNet(E, (C, A), BOUNDS)
    transition = noisy_transition(lambda x, t: 3 * x, noise, batch.state)
    found = path_logprobs(transition, batch.path, batch.executed)
    before, after = batch.path[:, 2], batch.path[:, 3]
    middle = math.sqrt(BOUNDS[0] * BOUNDS[1])
    wanted = (Normal(before - 3 * before / STEPS, middle).log_prob(after) * batch.executed).sum((1, 2))
    torch.testing.assert_close(found[:, 2], wanted)


def test_learned_noise_stays_within_its_bounds():
    noise = NoiseNet(E, (C, A), BOUNDS)
    nn.init.normal_(noise.layers[-1].weight, std=100)
    found = noise(torch.randn(50, E), torch.rand(50))
    assert found.shape == (50, C, A)
    assert found.min() >= BOUNDS[0] * (1 - 1e-6) and found.max() <= BOUNDS[1] * (1 + 1e-6)
    with pytest.raises(ValueError, match="0 < lower"):
        NoiseNet(E, (C, A), (0.0, 0.4))


def test_at_the_old_policy_ratios_are_1_and_the_gradient_is_the_policy_gradient(prepared):
    policy, objective, batch = prepared
    loss, metrics = objective.loss(policy, batch, generator())
    loss.backward()
    assert metrics["ratio/min"] == metrics["ratio/max"] == 1 and metrics["clip/region"] == 0
    found = gradients(policy)
    policy.zero_grad()
    logprobs = objective.logprobs(policy, batch)
    each = logprobs.sum(1) if isinstance(objective, ReinFlow) else logprobs.mean(1)
    (-(batch.advantages * each).mean()).backward()
    torch.testing.assert_close(found, gradients(policy))
    assert found.abs().max() > 0
    for parameter in objective.parameters():
        assert parameter.grad is not None


@pytest.mark.parametrize("name", ["flow_grpo", "reinflow"])
def test_what_was_not_run_of_a_chunk_gets_no_credit(name):
    policy, objective = Linear(SPEC).double(), OBJECTIVES[name]()
    one_command = explored(torch.float64).select(torch.arange(0, 8, 2))
    objective.loss(policy, objective.prepare(policy, one_command, generator()), generator())[0].backward()
    run, rest = policy.layer.bias.grad.view(C, A)
    assert run.abs().min() > 0 and not rest.any()


def test_ratios_follow_the_policy_and_are_clipped(prepared):
    policy, objective, batch = prepared
    log_ratios = objective.logprobs(policy, batch) - (batch.old_logprobs - 0.3)
    wanted = {FlowGRPO: 0.3, ReinFlow: 0.3 * STEPS, FPO: 0.3}[type(objective)]
    ratios = objective.ratios(log_ratios)
    torch.testing.assert_close(ratios, torch.full_like(ratios, math.exp(wanted)), rtol=1e-5, atol=0)
    grown = replace(batch, old_logprobs=batch.old_logprobs - 0.3)
    loss, metrics = objective.loss(policy, grown, generator())
    high = objective.options.ratio_bounds[1]
    assert metrics["clip/region"] == 0.5, "of the rows with a positive advantage"
    assert loss.item() == pytest.approx((math.exp(wanted) - high) / 2, rel=1e-4)


def test_the_ratio_of_fpo_is_that_of_its_losses():
    old, new, objective = Linear(SPEC), Linear(SPEC), FPO(draws=3, scale=5.0)
    batch = objective.prepare(old, explored(), generator())
    nn.init.zeros_(new.layer.weight)
    rows = torch.arange(8).repeat_interleave(3)
    drawn = batch.draws.noise.flatten(0, 1), batch.draws.time.flatten(0, 1), rows
    losses = [model.flow_losses(batch.prefix, batch.actions[rows], *drawn).view(8, 3).mean(1) for model in (old, new)]
    found = objective.ratios(objective.logprobs(new, batch) - batch.old_logprobs)
    torch.testing.assert_close(found[:, 0], (5.0 * (losses[0] - losses[1])).exp())


def test_parts_of_a_batch_add_up(prepared):
    policy, objective, batch = prepared
    objective.loss(policy, batch, generator())[0].backward()
    whole = gradients(policy)
    policy.zero_grad()
    for row in range(8):
        objective.loss(policy, batch.select(torch.tensor([row])), generator(), denominator=8)[0].backward()
    torch.testing.assert_close(whole, gradients(policy), atol=1e-5, rtol=1e-4)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="noise is 0"):
        FlowGRPO(noise=0)
    with pytest.raises(ValueError, match="draws_per_sample is 0"):
        FPO(draws=0)
