"""Reward models of actions: hand values of the formulas, and that each learns what it is for."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rewards.actions.ensemble import Ensemble, ModelInfo, RewardObjective
from rewards.actions.networks import (
    FrameBatch,
    ImageEncoder,
    TransitionBatch,
    covariance_loss,
    progress_targets,
    random_shift,
    success_targets,
    transitions,
    variance_loss,
)
from rewards.actions.ranking import choose, combined, expert_deviation, standardised
from tests.support.episodes import column, poses, walk

SIDE = 32


def learn(ensemble, batch, steps=40, lr=3e-3):
    objective, generator = RewardObjective(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(ensemble.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss, metrics = objective.loss(ensemble, batch, generator)
        loss.backward()
        optimiser.step()
    return loss.item(), {name: value.item() for name, value in metrics.items()}


def frames(images, targets, members=2):
    images, targets = torch.from_numpy(images), torch.from_numpy(targets)
    return FrameBatch(images.expand(members, *images.shape), targets.expand(members, -1))


def test_success_is_learned_from_the_last_pictures_alone():
    images, targets = success_targets([walk(0), walk(1, success=False)])
    assert targets.tolist() == [1, 1, 0, 0]
    assert (images[1] == walk(0).images[-1]).all()


def test_progress_counts_down_to_success_and_is_nothing_in_a_failure():
    _, targets = progress_targets([walk(0), walk(1, success=False), walk(2, steps=24, every=12)])
    assert targets == pytest.approx([0.5, 4 / 6, 5 / 6, 1, 0, 0, 0, 0, 0, 0.5, 1])


def test_a_success_classifier_tells_ends_of_successes_from_those_of_failures():
    episodes = [walk(seed, success=seed % 2 == 0) for seed in range(6)]
    ensemble = Ensemble(ModelInfo("success", 2, 8, 4))
    loss, metrics = learn(ensemble, frames(*success_targets(episodes)))
    scores = ensemble.score_episodes([walk(7), walk(9, success=False)])
    assert metrics["reward_model/accuracy"] == 1
    assert (scores[:, 0] > scores[:, 1] + 2).all()


def test_the_same_picture_of_half_its_episodes_is_worth_a_half():
    images = np.repeat(column(0.5)[None], 4, axis=0)
    ensemble = Ensemble(ModelInfo("progress", 1, 8, 4))
    learn(ensemble, frames(images, np.array([1, 1, 0, 0], np.float32), 1), steps=60)
    one = walk(0)
    one.images[-1] = column(0.5)
    assert 1 / (1 + np.exp(-ensemble.score_episodes([one]))) == pytest.approx(0.5, abs=0.1)


def test_members_start_from_their_own_seeds_and_learn_from_their_own_rows():
    info = ModelInfo("success", 2, 8, 4)
    ensemble, again = Ensemble(info, [1, 2]), Ensemble(info, [1, 2])
    first, second = (member.linear.weight for member in ensemble.members)
    assert not torch.equal(first, second)
    assert torch.equal(first, again.members[0].linear.weight)
    batch = frames(*success_targets([walk(0), walk(1, success=False)]))
    batch.images = torch.stack([batch.images[0], batch.images[0].flip(0)])
    batch.targets = torch.tensor([[1.0, 1, 0, 0], [1.0, 1, 0, 0]])  # for the second member the wrong way round
    learn(ensemble, batch, steps=60)
    success, failure = ensemble.score_episodes([walk(3), walk(4, success=False)]).T
    assert success[0] > failure[0] and success[1] < failure[1]


def test_a_shift_moves_all_views_of_a_row_together_and_rows_apart():
    images = torch.zeros(8, 3, SIDE, SIDE, 3, dtype=torch.uint8)
    images[:, :, 8, 8] = 255
    moved = random_shift(images, torch.Generator().manual_seed(0))
    places = [row[0, :, :, 0].nonzero().tolist() for row in moved]
    assert len({tuple(map(tuple, place)) for place in places}) > 3
    assert all(torch.equal(row[0], row[1]) and torch.equal(row[0], row[2]) for row in moved)
    assert all(abs(y - 8) <= 4 and abs(x - 8) <= 4 for place in places for y, x in place)


def test_pictures_of_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"the encoder reads uint8 \[B, 3, S, S, 3\]"):
        ImageEncoder(8)(torch.zeros(2, 3, SIDE, SIDE, 3))


def test_transitions_are_states_a_chunk_apart():
    before, after, condition = transitions([walk(0)], 8)
    assert condition.shape == (2, 20 * 9)
    assert [(one == walk(0).images[place]).all() for one, place in zip(before, (0, 1), strict=True)] == [True, True]
    assert [(one == walk(0).images[place]).all() for one, place in zip(after, (2, 3), strict=True)] == [True, True]
    with pytest.raises(ValueError, match="no episode has two pictures 5 control steps apart"):
        transitions([walk(0)], 5)


def test_variance_and_covariance_terms_have_their_values():
    assert variance_loss(torch.zeros(4, 3)).item() == pytest.approx(1 - 0.01)
    assert variance_loss(torch.tensor([[3.0], [-3.0]])).item() == 0
    same = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert covariance_loss(same).item() == pytest.approx(4.0)  # Cov = [[2, 2], [2, 2]]
    assert covariance_loss(torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])).item() == 0


def right_or_left():
    """Transitions in which the commands decide where the column goes: rows of three states, each moved both ways."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0.3, 0.7, 12)
    before = np.stack([column(place) for place in places for _ in (0, 1)])
    after = np.stack([column(place + move) for place in places for move in (-0.3, 0.3)])
    condition = np.tile(np.eye(2, 40, dtype=np.float32), (12, 1))
    return TransitionBatch(*(torch.from_numpy(part)[None] for part in (before, after, condition)))


def test_a_world_model_uses_the_commands_and_does_not_collapse():
    ensemble = Ensemble(ModelInfo("world_model", 1, 8, 1))
    _, metrics = learn(ensemble, right_or_left(), steps=100)
    assert metrics["reward_model/prediction_over_still"] < 0.6
    assert metrics["reward_model/variance_loss"] < 0.5


def test_goals_are_the_ends_of_successes_and_an_unknown_task_is_named():
    ensemble = Ensemble(ModelInfo("world_model", 2, 8, 4))
    ensemble.set_goals([walk(0), walk(1, success=False)])
    assert ensemble.score_episodes([walk(2)]) == pytest.approx(0, abs=1e-6)
    assert (ensemble.score_episodes([walk(1, success=False)]) < 0).all()
    stranger = walk(3)
    stranger.task = "lift_pot"
    with pytest.raises(ValueError, match="has goals of handover_block, not of lift_pot"):
        ensemble.score_episodes([stranger])
    with pytest.raises(ValueError, match="no episode of handover_block succeeded"):
        ensemble.set_goals([walk(1, success=False)])


@pytest.mark.parametrize("kind", ["success", "world_model"])
def test_a_saved_ensemble_scores_the_same(tmp_path, kind):
    ensemble = Ensemble(ModelInfo(kind, 2, 8, 4), [3, 4])
    if kind == "world_model":
        ensemble.set_goals([walk(0)])
    ensemble.save(tmp_path)
    episodes = [walk(5), walk(6, success=False)]
    assert (Ensemble.load(tmp_path).score_episodes(episodes) == ensemble.score_episodes(episodes)).all()


def test_deviation_adds_metres_radians_and_grippers_of_both_arms():
    expert = poses(4, 0)[1:]
    chunks = np.stack([expert, expert.copy(), expert.copy()])
    chunks[1].reshape(4, 2, 8)[:, 0, :3] += [0.03, 0, 0.04]
    chunks[2].reshape(4, 2, 8)[:, :, 7] -= 0.5
    assert expert_deviation(chunks, expert) == pytest.approx([0, -0.05, -0.2], abs=1e-6)


def test_scores_count_in_units_of_their_spread_within_states():
    states = [np.array([[1.0, 3.0]]), np.array([[10.0, 10.0]]), np.array([[0.0, 2 * np.sqrt(2)]])]
    scaled = standardised(states)
    assert scaled[0] == pytest.approx(np.array([[-1.0, 1.0]]))
    assert scaled[1] == pytest.approx(0)
    assert standardised([np.full((2, 3), 7.0)])[0] == pytest.approx(0)
    with pytest.raises(ValueError, match="not a finite number"):
        standardised([np.array([[np.nan, 1.0]])])


def test_rewards_of_different_units_are_added_by_weight():
    scores = combined({"a": [np.array([[0.0, 2.0], [0.0, 4.0]])], "b": [np.array([[50.0, -50.0]])]}, {"a": 1, "b": 0.5})
    assert scores[0] == pytest.approx(np.array([[-0.5, 0.5], [-0.5, 0.5]]))


def test_the_best_and_the_worst_chunk_make_a_pair_unless_members_disagree_or_the_gap_is_small():
    agreed = choose(np.array([[0.0, 2.0, -1.0], [0.2, 1.0, -2.0]]), margin=1.0)
    assert (agreed.best, agreed.worst, agreed.abstained) == (1, 2, None)
    assert agreed.gap == pytest.approx(3.0)
    assert choose(np.array([[0.0, 4.0, -1.0], [0.2, -2.1, -2.0]]), margin=1.0).abstained == "disagreement"
    assert choose(np.array([[0.0, 0.1], [0.0, 0.3]]), margin=1.0).abstained == "margin"
    assert choose(np.zeros((2, 3)), margin=0.0).abstained == "disagreement"
    assert choose(np.array([[0.0, np.nan], [0.0, 3.0]]), margin=0.0).abstained == "disagreement"
    assert choose(np.array([[0.0, 3.0]]), margin=np.nan).abstained == "margin"


def info(**fields):
    """`reward_model.json` of a sound model with fields replaced."""
    return json.dumps({"kind": "success", "members": 2, "latent": 8, "horizon": 2, "tasks": []} | fields).encode()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("reward_model.json", b"[", "does not describe a reward model"),
        ("reward_model.json", b"[]", "does not describe a reward model"),
        ("reward_model.json", b"[" * 100_000, "does not describe a reward model"),
        (
            "reward_model.json",
            b'{"kind": "x", "members": 1, "latent": 8, "horizon": 2, "tasks": []}',
            "kind is 'x'; use one",
        ),
        (
            "reward_model.json",
            b'{"kind": "success", "members": 0, "latent": 8, "horizon": 2, "tasks": []}',
            "members is 0;",
        ),
        ("reward_model.safetensors", bytes(60), "does not fit its description"),
        ("reward_model.safetensors", save({"x": torch.zeros(1)}), "does not fit its description"),
    ],
)
def test_a_damaged_model_is_one_line_that_names_the_file(tmp_path, file, content, said):
    Ensemble(ModelInfo("success", 2, 8, 2)).save(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        Ensemble.load(tmp_path)
    assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    ensemble = Ensemble(ModelInfo("success", 2, 8, 2))
    with torch.no_grad():
        ensemble.members[1].encoder.head.bias[3] = float("nan")
    ensemble.save(tmp_path)
    with pytest.raises(ValueError, match=r"is not finite: members\.1\.encoder\.head\.bias has numbers"):
        Ensemble.load(tmp_path)
