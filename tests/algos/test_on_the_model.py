"""The objectives on the real policy, and the real policy against the flow-matching equations."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from algos.auxiliary import PoseProbe
from algos.batch import FlowBatch, PreferenceBatch
from algos.flow_matching import (
    FlowMatching,
    chunk_loss,
    interpolate,
    loss_weight,
    velocity_target,
)
from algos.flowpro import RPRO
from rl_lab.benchmarks.rpro import FourPasses, random_batch, run
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from tests.support.flow_policies import euler_sample, generator

ALL = ("vision", "vlm", "expert")
USED = 20


@pytest.fixture(scope="module")
def policy() -> HyVLAPolicy:
    torch.manual_seed(0)
    return HyVLAPolicy(preset_config("nano"))


@pytest.fixture(scope="module")
def reference(policy: HyVLAPolicy) -> HyVLAPolicy:
    """Another expert on the same towers."""
    other = copy.deepcopy(policy).requires_grad_(False)
    for parameter in other.parameter_groups()["expert"]:
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator(1)))
    return other


@pytest.fixture(scope="module")
def batch(policy: HyVLAPolicy) -> PreferenceBatch:
    torch.manual_seed(1)
    return random_batch(policy, size=6, num_real=2)


@pytest.mark.parametrize("prediction", ["velocity", "action"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_models_losses_are_those_of_the_equations(prediction, clip, batch):
    torch.manual_seed(0)
    policy = HyVLAPolicy(preset_config("nano", prediction=prediction, loss_weight_clip=clip))
    noise, time = policy.sample_noise(6, generator()), torch.linspace(0.05, 1.0, 6)
    actions = torch.nn.functional.pad(batch.winner, (0, policy.action_dim - USED))
    with torch.no_grad():
        prefix = policy.encode(batch.observation)
        velocity = policy.velocity(prefix, interpolate(actions, noise, time), time)
        losses = policy.flow_losses(prefix, batch.winner, noise, time)
    expected = chunk_loss(velocity, velocity_target(actions, noise), loss_weight(time, clip), USED)
    assert torch.allclose(losses, expected, rtol=1e-4)


def test_the_models_sampler_takes_euler_steps(policy, batch):
    noise = policy.sample_noise(6, generator())
    with torch.no_grad():
        prefix = policy.encode(batch.observation)
        expected = euler_sample(lambda x_t, time: policy.velocity(prefix, x_t, time), noise, 10)
    sampled = policy.sample_actions(prefix, noise, num_steps=10)
    assert torch.allclose(sampled, expected[..., :USED], atol=1e-3), "the model sums its times in float32"


@pytest.mark.parametrize("groups", [ALL, ("expert",)])
def test_one_fused_call_gives_the_loss_of_four_passes(groups, policy, reference, batch):
    objective = RPRO(reference, draws_per_sample=3, groups=groups)
    fused, _ = objective.loss(policy, batch, generator())
    direct, _ = FourPasses(reference, 3).loss(policy, batch, generator())
    assert torch.allclose(fused, direct, rtol=1e-5)


def test_stored_prefixes_change_nothing(policy, reference, batch):
    objective = RPRO(reference, draws_per_sample=2, groups=("expert",))
    expected, _ = objective.loss(policy, batch, generator())
    with torch.no_grad():
        stored = replace(batch, prefix=policy.encode(batch.observation), observation=None)
    loss, _ = objective.loss(policy, stored, generator())
    assert torch.allclose(loss, expected, rtol=1e-6)


def test_a_policy_that_equals_its_reference_has_no_reward_and_the_loss_of_the_table(policy, batch):
    loss, metrics = RPRO(policy, groups=("expert",)).loss(policy, batch, generator())
    assert metrics["reward/winner"] == metrics["reward/loser"] == metrics["reward/margin"] == 0
    assert loss.item() == pytest.approx(3 * math.log(2) + float(metrics["loss/sft"]), rel=1e-5)


def test_vision_and_language_get_a_gradient_only_where_they_are_trained(reference, batch):
    """The expert reads the language tower's query and key norms, so frozen ones must not require gradients either."""
    torch.manual_seed(0)
    policy = HyVLAPolicy(preset_config("nano"))
    for groups in (("expert",), ALL):
        policy.zero_grad()
        for name, parameters in policy.parameter_groups().items():
            for parameter in parameters:
                parameter.requires_grad_(name in groups)
        RPRO(reference, groups=groups).loss(policy, batch, generator())[0].backward()
        touched = {
            name: any(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
            for name, parameters in policy.parameter_groups().items()
        }
        assert touched == {name: name in groups for name in ALL}


def test_the_probe_trains_the_vision_tower(batch):
    torch.manual_seed(0)
    policy = HyVLAPolicy(preset_config("nano"))
    probe = PoseProbe(policy.config.vlm_sizes.hidden, 7)
    rows = FlowBatch(batch.observation, batch.winner, truth=torch.randn(6, 7, generator=generator(2)))
    _, metrics = FlowMatching(ALL, heads=[probe]).loss(policy, rows, generator())
    _, vision = policy.encode(batch.observation, return_vision=True)
    probe.losses(vision, rows.truth).mean().backward()
    assert metrics["flow/probe"] > 0
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in policy.parameter_groups()["vision"])


def test_the_benchmark_measures_every_kind_of_step_and_cost_stays_within_its_aim():
    rows = run(batch=4, steps=1, draws=(1,))
    kinds = {(row["trained"], row["real_share"], row["step"]) for row in rows}
    assert len(rows) == len(kinds) == 2 * 4 + 2 * 3
    assert all(row["ms"] > 0 and row["saved_mb"] > 0 for row in rows)
    fused = [row for row in rows if row["trained"] == "everything" and row["step"] == "rpro"]
    assert len(fused) == 2 and all(row["memory_ratio"] <= 1.5 and row["flop_ratio"] <= 1.5 for row in fused)
