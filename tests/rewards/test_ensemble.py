"""Reward models as a part of a reward: mean, disagreement, abstention."""

import numpy as np
import pytest

from rewards.config import RewardConfig
from rewards.rubric import Rewards, combine_members

COLUMNS = {"answer": ["A", "B"], "reward_type": ["choice", "choice"]}
ANSWERS = ["<answer>A</answer>", "<answer>A</answer>"]


class Model:
    """Probabilities by member that are given; remembers what it was asked."""

    def __init__(self, *members):
        self.members, self.asked, self.closed = np.array(members), [], False

    def __call__(self, prompts, completions, images):
        self.asked.append((list(prompts), list(completions), list(images)))
        return self.members

    def close(self):
        self.closed = True


def rewards(model, weights, abstain_above=None):
    values = {"weights": weights, "models": {"learned": {"path": "somewhere", "abstain_above": abstain_above}}}
    return Rewards(RewardConfig.read(values, "rewards"), models={"learned": model})


def test_mean_and_disagreement_by_hand():
    values, apart, failures = combine_members("m", np.array([[0.2, 0.5], [0.6, 0.5]]), None)
    assert values == pytest.approx([0.4, 0.5])
    assert apart == pytest.approx([0.2, 0.0])
    assert failures == []


def test_members_that_disagree_abstain_and_say_so():
    values, _, (failure,) = combine_members("m", np.array([[0.2, 0.5], [0.6, 0.5]]), 0.1)
    assert values == [None, pytest.approx(0.5)]
    assert (failure.sample, failure.part, failure.reason) == (0, "m", "abstained")
    assert failure.detail == "members disagree by 0.200, more than 0.1"


@pytest.mark.parametrize("value, reason", [(float("nan"), "not a number"), (1.5, "out of range")])
def test_what_is_no_probability_is_a_failure(value, reason):
    values, _, (failure,) = combine_members("m", np.array([[value, 0.5]]), None)
    assert values == [None, 0.5]
    assert failure.reason == reason


def test_a_model_is_a_part_with_a_weight_and_sees_the_pictures():
    model = Model([0.8, 0.4])
    found = rewards(model, {"answer": 1.0, "learned": 1.0}).breakdown(
        [[{"role": "user", "content": "which?"}], "where?"], ANSWERS, images=["one", "two"], **COLUMNS
    )
    assert found.rewards == pytest.approx([(1 + 0.8) / 2, (0 + 0.4) / 2])
    assert found.parts["learned"] == pytest.approx([0.8, 0.4])
    assert "disagreement/learned" not in found.parts
    assert model.asked == [(["which?", "where?"], ANSWERS, ["one", "two"])]


def test_an_answer_on_which_members_disagree_is_masked_whatever_else_pays():
    found = rewards(Model([0.9, 0.4], [0.1, 0.4]), {"answer": 1.0, "learned": 1.0}, 0.2).breakdown(
        ["a", "b"], ANSWERS, **COLUMNS
    )
    assert found.rewards == [None, pytest.approx(0.2)]
    assert found.parts["disagreement/learned"] == pytest.approx([0.4, 0.0])
    assert found.metrics()["reward_failures/learned/abstained"] == 1
    assert found.metrics()["reward_masked"] == 0.5


def test_a_message_that_is_no_text_is_the_only_failure_of_its_sample():
    found = rewards(Model([0.9, 0.4]), {"learned": 1.0}).breakdown(["a", "b"], [3, ANSWERS[1]], **COLUMNS)
    assert found.rewards == [None, pytest.approx(0.4)]
    assert [(failure.sample, failure.part) for failure in found.failures] == [(0, "completion")]


def test_models_need_a_weight_to_be_loaded_and_are_closed():
    with pytest.raises(ValueError, match="reward model 'learned' needs a name of its own and a weight"):
        rewards(Model([0.5]), {"answer": 1.0})
    with pytest.raises(ValueError, match=r"models are \['learned'\], but \[\] are loaded"):
        Rewards(RewardConfig.read({"weights": {"learned": 1}, "models": {"learned": {"path": "x"}}}, "rewards"))
    with pytest.raises(ValueError, match=r"rewards.models.learned: abstain_above is 0.7; it must be at least 0 and at"):
        rewards(Model([0.5]), {"learned": 1.0}, 0.7)
    model = Model([0.5])
    rewards(model, {"learned": 1.0}).close()
    assert model.closed
