"""The learner on a policy of a few numbers: schedules, groups, averages, resume, and losses that are not numbers."""

import copy

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from rl_lab.learner.learner import Learner, NonFiniteLossError, Optimiser

OPTIMISER = Optimiser(lr=0.1, steps=20, warmup=2, weight_decay=0.0)


class TwoTowers(nn.Module):
    """y = expert(vlm(x)), one linear map each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vlm, self.expert = nn.Linear(3, 3), nn.Linear(3, 1)

    def parameter_groups(self):
        return {"vlm": list(self.vlm.parameters()), "expert": list(self.expert.parameters())}


class Regression:
    """Mean squared error to zero of inputs with noise from the generator."""

    def __init__(self, groups):
        self.groups = groups
        self.scale = nn.Parameter(torch.ones(1))

    def parameters(self):
        return [self.scale]

    def loss(self, policy, batch, generator):
        inputs = batch + 0.1 * torch.randn(batch.shape, generator=generator).to(batch)
        loss = (self.scale * policy.expert(policy.vlm(inputs)) - 1).square().mean()
        return loss, {"flow/loss": loss.detach()}


def make(groups=("vlm", "expert"), seed=0):
    learner = Learner(TwoTowers(), seed=seed)
    learner.add("fit", Regression(groups), OPTIMISER)
    return learner


BATCH = torch.arange(12.0).view(4, 3) / 10


def test_steps_lower_the_loss_and_report_rate_and_gradient():
    learner = make()
    history = [learner.step("fit", BATCH) for _ in range(20)]
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert set(history[0]) == {"loss", "flow/loss", "grad_norm", "lr"}


def test_warm_up_is_linear_and_the_cosine_ends_at_its_floor():
    optimiser = Optimiser(lr=1.0, steps=110, warmup=10, final_lr_fraction=0.1)
    assert [optimiser.lr_at(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert optimiser.lr_at(60) == pytest.approx(0.55)
    assert optimiser.lr_at(110) == optimiser.lr_at(500) == pytest.approx(0.1)


def test_groups_that_are_not_trained_keep_their_bits():
    learner = make(groups=("expert",))
    before = copy.deepcopy(learner.policy.vlm.state_dict())
    for _ in range(3):
        learner.step("fit", BATCH)
    assert all(torch.equal(before[key], value) for key, value in learner.policy.vlm.state_dict().items())
    assert not any(parameter.requires_grad for parameter in learner.policy.vlm.parameters())


def test_unknown_groups_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\['wheels'\].*\['expert', 'vlm'\]"):
        make(groups=("wheels",))


def test_a_learner_resumed_in_the_middle_gives_the_bits_of_the_unbroken_one():
    whole, first, second = make(), make(), make()
    for learner in (whole, first, second):
        learner.average_weights(0.9, start_step=2)
    for _ in range(8):
        whole.step("fit", BATCH)
    for _ in range(5):
        first.step("fit", BATCH)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        second.step("fit", BATCH)
    for learner in (whole, second):
        learner.average.copy_into_policy()
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name]), name


def test_the_seed_addresses_the_noise():
    losses = {seed: make(seed=seed).step("fit", BATCH)["loss"] for seed in (0, 1)}
    assert losses[0] != losses[1] and make(seed=0).step("fit", BATCH)["loss"] == losses[0]


def test_a_loss_that_is_not_a_number_stops_before_the_weights_change():
    learner = make()
    learner.step("fit", BATCH)
    before = copy.deepcopy(learner.policy.state_dict())
    poisoned = BATCH.clone()
    poisoned[2, 1] = float("nan")
    with pytest.raises(NonFiniteLossError) as caught:
        learner.step("fit", poisoned)
    assert caught.value.batch is poisoned
    assert all(torch.equal(before[key], value) for key, value in learner.policy.state_dict().items())


def test_the_average_follows_its_recursion():
    learner = make()
    learner.average_weights(0.5, start_step=1)
    expected = None
    for _ in range(4):
        learner.step("fit", BATCH)
        bias = learner.policy.expert.bias.detach().clone()
        expected = bias if expected is None else 0.5 * expected + 0.5 * bias
    learner.average.copy_into_policy()
    torch.testing.assert_close(learner.policy.expert.bias.detach(), expected)


def two_objectives():
    learner = Learner(TwoTowers(), seed=0)
    learner.add("both", Regression(("vlm", "expert")), OPTIMISER)
    learner.add("vlm", Regression(("vlm",)), OPTIMISER)
    return learner


def bits(learner):
    return copy.deepcopy(learner.policy.state_dict())


def test_gradients_are_those_of_the_next_step_and_change_nothing():
    learner, stepped = two_objectives(), two_objectives()
    for each in (learner, stepped):
        each.step("both", BATCH)
    before = copy.deepcopy(learner.state_dict())
    found = learner.gradients("both", BATCH)
    assert set(found) == {"vlm", "expert"} and found["vlm"].shape == (12,)
    after = learner.state_dict()
    assert all(torch.equal(before["policy"][key], value) for key, value in after["policy"].items())
    assert set(learner.gradients("vlm", BATCH)) == {"vlm"}
    first, second = learner.step("both", BATCH), stepped.step("both", BATCH)
    assert first == second, "measuring in between leaves no trace"
    clipped = torch.cat([parameter.grad.flatten() for parameter in learner.policy.vlm.parameters()])
    torch.testing.assert_close(max(1.0, first["grad_norm"]) * clipped, found["vlm"], rtol=1e-4, atol=1e-6)


def test_a_lowered_rate_is_the_schedules_times_its_factor_and_outlives_a_kill():
    learner, resumed = two_objectives(), two_objectives()
    rate = learner.step("both", BATCH)["lr"]
    learner.scale_lr("both", 0.25)
    assert learner.step("both", BATCH)["lr"] == pytest.approx(0.25 * 2 * rate)
    learner.freeze("both", ["vlm"])
    resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert resumed.step("both", BATCH) == learner.step("both", BATCH)
    assert resumed.tracks["both"].groups == {"expert"} and resumed.tracks["vlm"].scale == 1.0


def test_frozen_groups_keep_their_bits_under_that_objective_alone():
    learner = two_objectives()
    learner.step("both", BATCH)
    learner.freeze("both", ["vlm"])
    before = bits(learner)
    learner.step("both", BATCH)
    changed = {key for key, value in learner.policy.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"expert.weight", "expert.bias"}
    learner.step("vlm", BATCH)
    assert not torch.equal(learner.policy.vlm.weight, before["vlm.weight"])
    with pytest.raises(ValueError, match="nothing to train"):
        learner.freeze("both", ["expert"])


def test_a_rolled_back_learner_has_the_old_weights_and_moments_but_counts_on():
    learner = two_objectives()
    learner.step("both", BATCH)
    good, weights = copy.deepcopy(learner.state_dict()), bits(learner)
    learner.scale_lr("vlm", 0.5)
    learner.step("both", 3 * BATCH)
    learner.step("vlm", BATCH)
    learner.roll_back(good)
    assert all(torch.equal(weights[key], value) for key, value in learner.policy.state_dict().items())
    assert (learner.tracks["both"].step, learner.tracks["vlm"].step, learner.tracks["vlm"].scale) == (2, 1, 0.5)
    moments = learner.tracks["both"].stepper.state_dict()["state"]
    assert all(
        torch.equal(moments[key]["exp_avg"], value["exp_avg"])
        for key, value in good["tracks"]["both"]["stepper"]["state"].items()
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ({"schedule": "linear", "final_lr_fraction": 0.0}, "linear", {}),
        ({"schedule": "constant"}, "constant_with_warmup", {}),
        ({"final_lr_fraction": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        (
            {"schedule": "warmup_stable_decay", "decay_fraction": 0.3, "final_lr_fraction": 0.1},
            "warmup_stable_decay",
            {"num_decay_steps": 12, "min_lr_ratio": 0.1},
        ),
    ],
)
def test_schedules_are_those_of_transformers_behind_a_warm_up_that_begins_a_step_earlier(ours, theirs, options):
    optimiser = Optimiser(lr=2.0, steps=40, warmup=5, **ours)
    stepper = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = get_scheduler(
        theirs, stepper, num_warmup_steps=5, num_training_steps=40, scheduler_specific_kwargs=options
    )
    (rate,) = schedule.lr_lambdas
    assert [optimiser.lr_at(step) for step in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert [optimiser.lr_at(step) for step in range(5, 41)] == pytest.approx(
        [2.0 * rate(step) for step in range(5, 41)]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adafactor_lowers_the_loss_in_less_memory_and_resumes_with_the_same_bits(dtype):
    optimiser = Optimiser(lr=0.05, steps=20, name="adafactor", schedule="linear")
    learners = [Learner(TwoTowers().to(dtype), seed=0) for _ in range(2)]
    for learner in learners:
        learner.add("fit", Regression(("vlm", "expert")), optimiser)
    whole, resumed = learners
    losses = [whole.step("fit", BATCH.to(dtype))["loss"] for _ in range(12)]
    state = copy.deepcopy(whole.state_dict())
    resumed.load_state_dict(state)
    assert losses[-1] < 0.7 * losses[0]
    moments = [moment for one in state["tracks"]["fit"]["stepper"]["state"].values() for moment in one.values()]
    assert sum(map(torch.numel, moments)) < 2 * sum(value.numel() for value in whole.policy.parameters())
    for _ in range(3):
        assert whole.step("fit", BATCH.to(dtype)) == resumed.step("fit", BATCH.to(dtype))
    assert all(map(torch.equal, whole.policy.state_dict().values(), resumed.policy.state_dict().values()))
