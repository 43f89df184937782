"""What two objectives do to shared parameters."""

import pytest
import torch

from rl_lab.learner.interference import Moves, cosines, drift


def test_cosines_are_those_of_the_groups_that_both_train_and_of_all_of_them():
    first = {"vision": torch.tensor([1.0, 0.0]), "vlm": torch.tensor([1.0])}
    second = {"vision": torch.tensor([0.0, 2.0]), "vlm": torch.tensor([-3.0]), "expert": torch.tensor([5.0])}
    found = cosines(first, second)
    assert found == {"cosine/vision": 0.0, "cosine/vlm": -1.0, "cosine/shared": pytest.approx(-3 / (2 * 13) ** 0.5)}
    assert cosines({"vlm": torch.zeros(1)}, second) == {"cosine/vlm": 0.0, "cosine/shared": 0.0}
    assert cosines({"vision": torch.ones(2)}, {"expert": torch.ones(1)}) == {}


def test_drift_is_the_relative_distance_from_the_start():
    start = {"vlm": [torch.tensor([3.0]), torch.tensor([4.0])]}
    now = {"vlm": [torch.tensor([3.0]), torch.tensor([5.0])]}
    assert drift(now, start) == {"drift/vlm": pytest.approx(0.2)}
    assert drift(start, start) == {"drift/vlm": 0.0}


def test_moves_add_up_to_the_change_and_can_be_taken_away_one_by_one():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    moves = Moves([weight])
    for objective, change in (("grpo", 0.5), ("rpro", -2.0), ("grpo", 0.25)):
        moves.begin()
        with torch.no_grad():
            weight += change
        moves.end(objective)
    assert [sums[0].tolist() for sums in moves.sums.values()] == [[0.75, 0.75], [-2.0, -2.0]]
    moves.add("rpro", -1.0)
    assert weight.tolist() == [1.75, 2.75]
    moves.add("nobody", -1.0)
    assert weight.tolist() == [1.75, 2.75]
