"""The table of methods."""

import pytest
import torch

from algos.flow_matching import FlowMatching
from algos.flowpro import RPRO
from algos.methods import METHODS, find_method
from algos.policy_gradients.reinflow import NoiseNet
from tests.support.flow_policies import FakePolicy, flow_batch, generator, preference_batch

BASELINES = [
    "continued_sft",
    "dagger",
    "dagger_buffered",
    "dagger_buffered_si",
    "flow_dpo",
    "flow_dpo_sft",
    "rpro",
    "rpro_no_sft",
    "rpro_no_interpolation",
    "rpro_trajectory",
    "advantage_conditioned",
]
GRADIENTS = {"flow_grpo": {"noise": 0.3}, "reinflow": {"noise": NoiseNet(3, (2, 4), (0.1, 0.2))}, "fpo": {"draws": 2}}
"""Policy gradients with settings; they learn from batches of their own, see test_policy_gradients.py."""


def test_every_baseline_of_the_comparison_is_there():
    assert list(METHODS) == [*BASELINES, *GRADIENTS]
    for name, settings in GRADIENTS.items():
        objective = METHODS[name].objective(groups=("expert",), draws_per_sample=1, epsilon=0.1, **settings)
        assert objective.options.epsilon == 0.1


@pytest.mark.parametrize("name", BASELINES)
def test_every_method_builds_an_objective_that_steps(name):
    method = METHODS[name]
    objective = method.objective(groups=("expert",), draws_per_sample=2, reference=FakePolicy(1), beta=2.0)
    batch = flow_batch(4) if method.rows in ("demonstrations", "labelled") else preference_batch(4, 2)
    policy = FakePolicy(0)
    loss, _ = objective.loss(policy, batch, generator())
    loss.backward()
    assert policy.expert[0].weight.grad is not None and torch.isfinite(loss)
    assert method.description and method.source


def test_only_preference_methods_need_a_reference_and_only_continued_sft_needs_no_pairs():
    assert [name for name, method in METHODS.items() if not method.needs_collection] == ["continued_sft", *GRADIENTS]
    for method in METHODS.values():
        assert method.needs_reference == (method.loss == "preference")
    with pytest.raises(ValueError, match="frozen reference"):
        METHODS["rpro"].objective(groups=("expert",), draws_per_sample=1)


def test_the_ablations_switch_off_what_they_say():
    objectives = {
        name: METHODS[name].objective(groups=("expert",), draws_per_sample=1, reference=FakePolicy(1), lambda_sft=0.5)
        for name in BASELINES
    }
    preference = {name: value for name, value in objectives.items() if isinstance(value, RPRO)}
    assert {name for name, value in preference.items() if not value.proximal} == {"flow_dpo", "flow_dpo_sft"}
    assert {name for name, value in preference.items() if value.weights["lambda_sft"] == 0} == {
        "flow_dpo",
        "rpro_no_sft",
    }
    assert all(isinstance(value, FlowMatching) for name, value in objectives.items() if name not in preference)


def test_the_control_differs_from_rpro_in_the_loss_alone():
    control, rpro = METHODS["dagger_buffered_si"], METHODS["rpro"]
    assert (control.rows, control.fixed_ratios, control.loser_states) == (
        rpro.rows,
        rpro.fixed_ratios,
        rpro.loser_states,
    )


def test_rpro_without_the_proximal_term_is_flow_dpo_with_sft():
    assert find_method("rpro_no_proximal") is METHODS["flow_dpo_sft"]


def test_an_unknown_method_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'dagger_buffered'"):
        find_method("dager_bufered")
    with pytest.raises(ValueError, match="choose one of continued_sft"):
        find_method("zzz")
