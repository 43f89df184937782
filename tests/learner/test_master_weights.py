"""bfloat16 weights with float32 masters, and recomputed activations."""

import copy

import pytest
import torch
from torch import nn

from algos.flow_matching import FlowMatching
from rl_lab.benchmarks.rpro import random_batch, saved_bytes
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.learner.optim import MasterAdamW, adamw
from tests.support.models import make_policy

ALL = ("vision", "vlm", "expert")


def learner_of(policy, **options):
    learner = Learner(policy, seed=0)
    learner.add("sft", FlowMatching(ALL), Optimiser(**({"lr": 1e-3, "steps": 20} | options)))
    return learner


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return random_batch(make_policy(), 4, num_real=4)


def test_steps_too_small_for_bfloat16_add_up_in_the_masters():
    rounded, exact = (nn.Parameter(torch.ones(8, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    optimizers = [adamw([parameter], lr=1e-4, weight_decay=0.0) for parameter in (rounded, exact)]
    for _ in range(100):
        for parameter, optimizer in zip((rounded, exact), optimizers, strict=True):
            optimizer.zero_grad()
            parameter.sum().backward()
            optimizer.step()
    torch.testing.assert_close(optimizers[0].masters[0], exact.detach())
    assert torch.equal(rounded, exact.to(torch.bfloat16)) and not torch.equal(rounded, torch.ones_like(rounded))


def test_float32_parameters_have_no_copies():
    assert type(adamw([nn.Parameter(torch.ones(2))], lr=1.0)) is torch.optim.AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_steps_are_those_of_plain_adamw_also_after_a_state_is_loaded(dtype):
    torch.manual_seed(0)
    start = torch.randn(50).to(dtype)
    gradients = [torch.randn(50).to(dtype) for _ in range(6)]
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    expected = start.float()
    plain = torch.optim.AdamW([expected], fused=False, foreach=False, **options)
    first, second = (nn.Parameter(start.clone()) for _ in range(2))
    before, after = adamw([first], **options), adamw([second], **options)
    for number, gradient in enumerate(gradients):
        expected.grad = gradient.float()
        plain.step()
        if number == 3:
            after.load_state_dict(copy.deepcopy(before.state_dict()))
            second.data.copy_(first.data)
        parameter, optimizer = (first, before) if number < 3 else (second, after)
        parameter.grad = gradient.clone()
        optimizer.step()
    assert after.param_groups[0]["fused"]
    torch.testing.assert_close(second.float(), expected.to(dtype).float(), rtol=1e-6, atol=1e-6)


def test_a_bfloat16_policy_learns_like_the_float32_one(batch):
    exact = learner_of(make_policy())
    rounded = learner_of(make_policy().to(torch.bfloat16))
    assert isinstance(rounded.tracks["sft"].stepper, MasterAdamW)
    losses = [[learner.step("sft", batch)["loss"] for _ in range(10)] for learner in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_resumed_bfloat16_learner_gives_the_bits_of_the_unbroken_one(batch):
    base = make_policy().to(torch.bfloat16)
    whole, second = (learner_of(copy.deepcopy(base)) for _ in range(2))
    for learner in (whole, second):
        learner.average_weights(0.9, start_step=1)
    for _ in range(3):
        whole.step("sft", batch)
    second.load_state_dict(copy.deepcopy(whole.state_dict()))
    for learner in (whole, second):
        learner.step("sft", batch)
        learner.average.copy_into_policy()
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name]), name


def test_recomputed_activations_give_the_same_bits_with_less_memory(batch):
    plain, recomputed = make_policy().train(), make_policy().train()
    recomputed.gradient_checkpointing_enable()
    results = []
    for policy in (plain, recomputed):
        learner = learner_of(policy)
        metrics = [learner.step("sft", batch) for _ in range(2)]
        memory = saved_bytes(lambda policy=policy: FlowMatching(ALL).loss(policy, batch, torch.Generator())[0])
        results.append((metrics, memory))
    assert results[0][0] == results[1][0]
    assert results[1][1] < 0.5 * results[0][1]


def test_objectives_that_train_the_same_weights_share_their_masters():
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masters: dict = {}
    first, second = (adamw([parameter], masters, lr=1e-4, weight_decay=0.0) for _ in range(2))
    assert first.masters[0] is second.masters[0]
    for _ in range(30):
        for optimizer in (first, second):
            optimizer.zero_grad()
            parameter.sum().backward()
            optimizer.step()
    torch.testing.assert_close(masters[parameter], torch.full((4,), 1 - 60 * 1e-4), atol=1e-5, rtol=0)
