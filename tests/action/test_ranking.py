"""Chunks that were sampled in one state become preference pairs, and the pairs rows of the same objective."""

import json

import numpy as np
import pytest

from algos.methods import METHODS
from algos.smooth_interpolation import interpolate_pair
from envs.types import RANKED
from rl_lab.model.presets import preset_config
from rl_lab.records.action_batches import demonstrations, fit_processor, pair_states
from rl_lab.records.action_datasets import preference_data
from rl_lab.records.episodes import read_candidates, read_pairs, write_candidates
from rl_lab.rollouts.ranking import agreement, rank_folder, rank_states, score_states
from tests.action.test_buffers import assert_equal
from tests.action.test_datasets import HORIZON, TIMING
from tests.support.episodes import episode, pair, sampled_chunks
from tests.support.stored_runs import STATES


def ranked(margin=1.0):
    scores = score_states(STATES, ["deviation"], {}, seed=0)
    return rank_states(STATES, scores, {"deviation": 1.0}, margin)[0]


def test_sampled_chunks_come_back_from_disk_bit_for_bit(tmp_path):
    write_candidates(tmp_path, STATES)
    for one, other in zip(read_candidates(tmp_path), STATES, strict=True):
        assert_equal(one, other)


def test_the_chunk_nearest_to_the_experts_is_preferred_to_the_farthest():
    for one, source in zip(ranked(), STATES, strict=True):
        assert (one.winner.actions == source.actions[2]).all() and (one.loser.actions == source.actions[0]).all()
        assert (one.origin, one.reward, one.start_digest) == (RANKED, "deviation", source.start_digest)
        assert one.reward_gap == pytest.approx(2 / np.sqrt(2 / 3))


def test_a_state_without_a_clear_best_gives_no_pair_and_is_counted():
    scores = {"a": [np.array([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]]), np.array([[0.0, 3.0, 1.0], [5.0, 3.0, 4.0]])]}
    pairs, counts, _ = rank_states(STATES[:2], scores, {"a": 1.0}, margin=0.0)
    assert [one.seed for one in pairs] == [0]
    assert counts == {"states": 2, "abstained/disagreement": 1}
    assert rank_states(STATES[:2], scores, {"a": 1.0}, margin=9.0)[1]["abstained/margin"] == 1


def test_chance_is_drawn_by_the_seed():
    first, again, other = (score_states(STATES, ["random"], {}, seed)["random"] for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == other[0]).all()


def test_agreement_with_the_truth_tells_a_right_reward_from_a_wrong_one():
    right = [np.array([[0.0, 1.0, 2.0]])] * 4
    for scores, rho in ((right, 1.0), ([-one for one in right], -1.0)):
        _, _, choices = rank_states(STATES, {"a": scores}, {"a": 1.0}, margin=0.0)
        found = agreement(STATES, scores, choices)
        assert found["rank_correlation"] == pytest.approx(rho)
        assert found["pair_accuracy"] == found["chosen_right"] == (rho + 1) / 2
        assert found["states_that_differ"] == found["chosen_different"] == 4


def test_chunks_that_led_to_the_same_say_nothing_about_a_reward():
    same = sampled_chunks(7)
    same.progress[:] = 0.4
    scores = [np.array([[0.0, 1.0, 2.0]])]
    _, _, choices = rank_states([same], {"a": scores}, {"a": 1.0}, margin=0.0)
    found = agreement([same], scores, choices)
    assert found == {
        "states_that_differ": 0,
        "rank_correlation": None,
        "pair_accuracy": None,
        "chosen_different": 0,
        "chosen_right": None,
    }


def test_pairs_lie_in_the_ordinary_store_with_what_they_cost(tmp_path):
    write_candidates(tmp_path / "candidates", STATES)
    rank_folder(tmp_path / "candidates", {}, {"deviation": 1.0}, 1.0, 0, tmp_path / "pairs")
    for one, other in zip(read_pairs(tmp_path / "pairs"), ranked(), strict=True):
        assert_equal(one, other)
    counts = json.loads((tmp_path / "pairs" / "collection.json").read_text())
    assert (counts["pairs"], counts["states"], counts["agreement"]["chosen_right"]) == (4, 4, 1)


def test_a_ranked_pair_is_compared_in_its_own_state_and_nowhere_else():
    one = ranked()[0]
    tuples = interpolate_pair(one, HORIZON, 1)
    tuples = tuples.select(tuples.from_loser)
    assert len(tuples) == 1
    assert (tuples.winner[0] == one.winner.actions).all() and (tuples.loser[0] == one.loser.actions).all()
    mixed = pair_states([pair(1), *ranked()], TIMING, None)
    assert [int((mixed.pair == number).sum()) for number in range(1, 5)] == [1, 1, 1, 1]


def test_ranked_pairs_get_their_share_of_every_batch():
    demos = demonstrations([episode(seed) for seed in (1, 2)], TIMING)
    processor = fit_processor(preset_config("nano"), [episode(seed) for seed in (1, 2)], TIMING)
    data = preference_data(
        METHODS["rpro"],
        [[pair(1)]],
        demos,
        processor,
        TIMING,
        mix=(0.4, 0.2, 0.4),
        batch_size=20,
        seed=0,
        ranked=ranked(),
    )
    batch = data.batch(3)
    assert [int((batch.source == number).sum()) for number in range(4)] == [8, 0, 4, 8]
    assert not batch.identical[batch.source == 3].any()
