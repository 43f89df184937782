"""Adapters on the nano policy: what they train, what lies under them, and what is left when they are merged."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, LoraModel
from peft.tuners.tuners_utils import cast_adapter_dtype

from algos.flow_matching import FlowMatching
from algos.flowpro import RPRO
from rl_lab.benchmarks.rpro import random_batch
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.model.lora import ADAPTER, Adapted, adapted_products
from rl_lab.model.policy import HyVLAPolicy
from tests.support.models import make_observations, make_policy

ALL = ("vision", "vlm", "expert")
BOTH = ("attention", "mlp")
OPTIMISER = Optimiser(lr=1e-2, steps=50)


def adapt(policy, groups=ALL, seed=0, targets=BOTH):
    torch.manual_seed(seed)
    return Adapted(policy, groups, rank=4, alpha=8.0, targets=targets)


def moved(adapted):
    """The same with adapters away from their start, at which they do nothing."""
    with torch.no_grad():
        for number, (_, parameter) in enumerate(adapted.named_parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return adapted


def losses(policy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(4, policy.chunk_size, 20, generator=generator)
    noise, time = policy.sample_noise(4, generator), policy.sample_time(4, generator)
    return policy.flow_losses(policy.encode(make_observations(policy, 4)), actions, noise, time)


@pytest.fixture
def base() -> HyVLAPolicy:
    return make_policy()


@pytest.fixture
def batch(base):
    torch.manual_seed(1)
    return random_batch(base, 6, num_real=3)


def learner_of(policy, objective):
    learner = Learner(policy, seed=0)
    learner.add("rpro", objective, OPTIMISER)
    return learner


def rpro_gradients(policy, reference, batch, groups):
    loss, _ = RPRO(reference, groups=groups).loss(policy, batch, torch.Generator().manual_seed(3))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    return loss.detach(), {name: gradient for name, gradient in gradients.items() if gradient is not None}


def test_the_reference_view_gives_the_bits_of_the_base_policy_while_the_adapters_move(base):
    expected = losses(base)
    adapted = moved(adapt(copy.deepcopy(base)))
    assert torch.equal(losses(adapted.reference), expected)
    assert not torch.allclose(losses(adapted), expected, rtol=1e-3)


def test_before_the_first_step_the_adapted_policy_is_the_base_policy(base):
    expected = losses(base)
    torch.testing.assert_close(losses(adapt(base)), expected)


@pytest.mark.parametrize("groups", [ALL, ("expert",), ("vlm",)])
def test_only_adapters_of_the_trained_groups_get_gradients(base, batch, groups):
    adapted = moved(adapt(base, groups))
    learner = learner_of(adapted, RPRO(adapted.reference, groups=groups))
    learner.step("rpro", batch)
    trained = {name for name, parameter in adapted.model.named_parameters() if parameter.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    assert {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad} >= trained
    sizes = {group: len(parameters) for group, parameters in adapted.parameter_groups().items()}
    assert {group for group, size in sizes.items() if size} == set(groups)


def test_every_adapter_that_acts_on_the_loss_gets_a_gradient(base):
    """Past the last language layer's keys and values nothing is read, so only its later products get none."""
    adapted = moved(adapt(base))
    losses(adapted).sum().backward()
    last = f"language_model.model.layers.{base.config.vlm_sizes.num_layers - 1}."
    idle = {
        name for name, parameter in adapted.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert all(last in name and not any(part in name for part in ("k_proj", "v_proj.", "v_proj_v")) for name in idle)


@pytest.mark.parametrize("groups", [ALL, ("expert",)])
def test_rpro_has_the_same_loss_and_gradient_as_with_a_separate_copy_as_reference(base, batch, groups):
    separate = copy.deepcopy(base).eval().requires_grad_(False)
    results = []
    for use_copy in (True, False):
        adapted = moved(adapt(copy.deepcopy(base), groups))
        results.append(rpro_gradients(adapted, separate if use_copy else adapted.reference, batch, groups))
    (loss, gradients), (other_loss, other) = results
    assert torch.equal(loss, other_loss) and gradients.keys() == other.keys()
    assert all(torch.equal(gradients[name], other[name]) for name in gradients)


def test_a_stored_reference_prefix_changes_nothing(base, batch):
    adapted = moved(adapt(base))
    stored = replace(batch, reference_prefix=adapted.reference.encode(batch.observation))
    loss, _ = rpro_gradients(adapted, adapted.reference, batch, ALL)
    again, _ = RPRO(adapted.reference, groups=ALL).loss(adapted, stored, torch.Generator().manual_seed(3))
    assert torch.equal(loss, again)


def test_the_merged_policy_is_the_adapted_policy_under_the_released_names(base, tmp_path):
    keys = base.state_dict().keys()
    adapted = moved(adapt(base))
    expected = losses(adapted).detach()
    merged = adapted.merge()
    assert merged.state_dict().keys() == keys
    torch.testing.assert_close(losses(merged), expected, rtol=1e-5, atol=1e-5)
    merged.save_pretrained(tmp_path)
    assert torch.equal(losses(HyVLAPolicy.from_pretrained(tmp_path)), losses(merged))


def test_a_resumed_learner_restores_adapters_and_optimiser_bitwise(base, batch):
    def fresh(seed):
        adapted = adapt(copy.deepcopy(base), seed=seed)
        return learner_of(adapted, RPRO(adapted.reference, groups=ALL))

    whole, second = fresh(0), fresh(1)
    for _ in range(2):
        whole.step("rpro", batch)
    state = copy.deepcopy(whole.state_dict())
    assert all("lora_" in name for name in state["policy"])
    second.load_state_dict(state)
    for learner in (whole, second):
        learner.step("rpro", batch)
    pairs = zip(whole.policy.named_parameters(), second.policy.named_parameters(), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)


def test_adapters_of_other_targets_are_refused_on_resume(base):
    saved = adapt(copy.deepcopy(base), targets=("attention",)).state_dict()
    with pytest.raises(ValueError, match="groups and targets differ"):
        adapt(base).load_state_dict(saved)


def test_groups_without_such_layers_are_refused(base):
    with pytest.raises(ValueError, match="choose other targets"):
        adapt(base, groups=())


def test_the_weight_average_holds_adapters_only(base, batch):
    adapted = adapt(base)
    learner = learner_of(adapted, FlowMatching(ALL))
    learner.average_weights(0.5, start_step=1)
    learner.step("rpro", batch)
    learner.step("rpro", batch)
    assert learner.average.weights.keys() == dict(adapted.named_parameters()).keys()
    learner.average.copy_into_policy()


def test_on_bfloat16_weights_the_adapters_are_float32(base):
    adapted = adapt(base.to(torch.bfloat16))
    assert {parameter.dtype for _, parameter in adapted.named_parameters()} == {torch.float32}
    losses(adapted).sum().backward()
    assert {parameter.dtype for parameter in adapted.merge().parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_have_the_names_and_bits_of_peft(base, dtype):
    base = base.to(dtype)
    other = copy.deepcopy(base)
    adapted = moved(adapt(base))
    torch.manual_seed(0)
    names = adapted_products(other, ALL, BOTH)
    tuner = LoraModel(other, LoraConfig(r=4, lora_alpha=8, target_modules=names), ADAPTER)
    cast_adapter_dtype(other, ADAPTER)
    for number, (_, parameter) in enumerate((n, p) for n, p in other.named_parameters() if "lora_" in n):
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    expected = dict(other.named_parameters())
    assert adapted.state_dict().keys() == {name for name in expected if "lora_" in name}
    assert all(torch.equal(value, expected[name]) for name, value in adapted.named_parameters())
    results = [losses(policy) for policy in (adapted, other)]
    for result in results:
        result.sum().backward()
    assert torch.equal(*results)
    assert all(
        value.grad is expected[name].grad or torch.equal(value.grad, expected[name].grad)
        for name, value in adapted.named_parameters()
    )
    merged, wanted = adapted.merge().state_dict(), tuner.merge_and_unload().state_dict()
    assert merged.keys() == wanted.keys() and all(torch.equal(merged[name], wanted[name]) for name in merged)
