"""The memory plan against the bytes of real models, optimizers and forward passes."""

import pytest
import torch

from algos.flow_matching import FlowMatching
from algos.policy import GROUPS
from rl_lab.benchmarks.direct import padded
from rl_lab.benchmarks.rpro import random_batch, saved_bytes
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.learner.memory_plan import memory_plan
from rl_lab.model.lora import Adapted
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from tests.support.models import make_policy

LORA = {"rank": 4, "alpha": 8.0, "targets": ("attention", "mlp")}


def nbytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_masters_moments_and_gradients_are_those_of_a_step(dtype):
    policy = make_policy().to(dtype)
    plan = memory_plan(policy.config, batch=2, dtype=dtype)
    torch.manual_seed(0)
    batch = random_batch(policy, 2, num_real=2)
    learner = Learner(policy, seed=0)
    learner.add("sft", FlowMatching(GROUPS), Optimiser(lr=1e-3, steps=2))
    track = learner.tracks["sft"]
    track.objective.loss(policy, batch, torch.Generator())[0].backward()
    idle = [parameter for parameter in track.parameters if parameter.grad is None]
    assert plan.gradients == nbytes(parameter.grad for parameter in track.parameters if parameter.grad is not None) + (
        nbytes(idle)
    )
    learner.step("sft", batch)
    moments = [state[key] for state in track.stepper.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert plan.weights == nbytes(policy.parameters())
    assert plan.masters == nbytes(getattr(track.stepper, "masters", []))
    assert plan.moments == nbytes(moments) + 8 * sum(parameter.numel() for parameter in idle)


@pytest.mark.parametrize(("preset", "batch"), [("nano", 3), ("mini", 1)])
@pytest.mark.parametrize("recompute", [True, False])
def test_activations_are_those_that_a_forward_pass_saves(preset, batch, recompute):
    torch.manual_seed(0)
    config = preset_config(preset)
    policy = HyVLAPolicy(config).train()
    plan = memory_plan(config, batch=batch, recompute=recompute, dtype=torch.float32)
    rows = random_batch(policy, batch, num_real=batch)
    rows.observation = padded(rows.observation, config.tokenizer_max_length)

    def saved() -> int:
        return saved_bytes(lambda: FlowMatching(GROUPS).loss(policy, rows, torch.Generator())[0])

    plain = expected = saved()
    if recompute:
        policy.gradient_checkpointing_enable()
        expected = saved()
        expected += (plain - expected) // config.vlm_sizes.num_layers
    assert plan.activations == pytest.approx(expected, rel=0.03)


def test_adapters_are_counted_and_need_no_second_copy_of_the_weights():
    policy = make_policy().to(torch.bfloat16)
    without = memory_plan(policy.config, batch=2)
    plan = memory_plan(policy.config, batch=2, lora=LORA)
    adapters = nbytes(parameter for _, parameter in Adapted(policy, GROUPS, **LORA).named_parameters())
    assert plan.weights == without.weights + adapters and plan.masters == 0
    assert (plan.moments, plan.gradients) == (2 * adapters, adapters)
    copied = memory_plan(policy.config, batch=2, reference_copy=True)
    assert copied.weights == 2 * without.weights and plan.peak < without.peak < copied.peak
