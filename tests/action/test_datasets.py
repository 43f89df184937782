"""From records to batches: every method sees the rows it names, in the shares it names."""

import dataclasses

import numpy as np
import pytest
import torch

from algos.chunks import Timing
from algos.methods import METHODS
from envs.se3 import decode_absolute, encode_pose
from rl_lab.common.errors import UserError
from rl_lab.config.actions import ObjectiveConfig
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.records.action_batches import demonstrations, fit_processor, pair_states, standardised_truth
from rl_lab.records.action_datasets import SIDE_STATES, encode_rows, preference_data
from tests.support.episodes import episode, images, pair

CONFIG = preset_config("nano")
HORIZON = CONFIG.n_action_steps
WINNER, LOSER = 20, 14
LOSER_STATES = LOSER - HORIZON + 1
TIMING = Timing(HORIZON)
EPISODES = [episode(1), episode(2)]


@pytest.fixture(scope="module")
def demos():
    return demonstrations(EPISODES, TIMING)


@pytest.fixture(scope="module")
def processor():
    return fit_processor(CONFIG, EPISODES, TIMING)


def build(name, demos, processor, rounds=1, batch_size=40):
    pairs = [[pair(10 * number + k) for k in range(3)] for number in range(rounds)]
    mix = (0.8, 0.2) if rounds == 1 else (0.7, 0.15, 0.15)
    return preference_data(METHODS[name], pairs, demos, processor, TIMING, mix=mix, batch_size=batch_size, seed=0)


def demonstrations_alone(demos, processor):
    method = METHODS["continued_sft"]
    return preference_data(method, [], demos, processor, TIMING, mix=[1.0], batch_size=4, seed=0)


def test_demonstration_chunks_are_the_next_commands_padded_with_the_last(demos):
    recorded = episode(1)
    np.testing.assert_array_equal(demos.winner[2], recorded.actions[2 : 2 + HORIZON])
    np.testing.assert_array_equal(demos.winner[14], np.repeat(recorded.actions[14:], HORIZON, axis=0))


def test_chunks_survive_normalisation_and_back(demos, processor):
    chunks = processor.encode(demos.winner, demos.poses)
    decoded = processor.decode(chunks.numpy(), demos.poses)
    np.testing.assert_allclose(decoded[..., :3], demos.winner[..., :3], atol=1e-6)
    np.testing.assert_allclose(encode_pose(decoded), encode_pose(demos.winner), atol=1e-5)
    np.testing.assert_allclose(encode_pose(decode_absolute(encode_pose(decoded))), encode_pose(decoded), atol=1e-9)


def test_truth_is_standardised_within_each_task_and_padded():
    truth = standardised_truth([episode(1, truth_size=4), episode(2, truth_size=2, task="lift_pot")])
    assert truth.shape == (30, 4) and np.abs(truth).max() <= 3
    np.testing.assert_allclose(truth[:15].mean(0), 0, atol=0.1)
    assert not truth[15:, 2:].any()


def test_interpolated_states_carry_the_images_of_their_step():
    states = pair_states([pair(1), pair(2)], TIMING, None)
    assert len(states) == 2 * (LOSER_STATES + WINNER)
    assert states.frames[states.seen[:LOSER_STATES, 0], 0, 0, 0, 0].tolist() == list(range(LOSER_STATES))
    assert states.identical.tolist() == (~states.from_loser).tolist()


def with_past(one, steps):
    """The pair with the frames of all steps before its start, 100 brighter than those of its segments."""
    return dataclasses.replace(one, start_step=steps, before=100 + images(steps))


@pytest.mark.parametrize("start", [3, 30])
def test_a_memory_looks_back_within_its_segment_and_to_the_shared_past(start):
    memory = Timing(HORIZON, history=3, interval=4)
    one = with_past(pair(1), start)
    one.winner.images += 50
    states = pair_states([with_past(pair(2), 12), one], memory, None)
    assert states.seen.shape == (2 * (LOSER_STATES + WINNER), 3)
    assert len(states.frames) < len(states.seen) * 3
    for row in np.flatnonzero(states.pair == 1):
        step = row - LOSER_STATES - WINNER
        base, step = (0, step) if states.from_loser[row] else (50, step - LOSER_STATES)
        for back, number in zip((8, 4, 0), states.seen[row], strict=True):
            wanted = base + step - back if step >= back else 100 + start + step - back
            assert (number == -1) if start + step < back else (states.frames[number, 0, 0, 0, 0] == wanted)


def test_batches_hold_the_frames_that_states_saw(processor):
    """Demonstrations and pairs of a policy with memory; a frame is stored once, however many states see it."""
    memory = Timing(HORIZON, history=3, interval=4)
    demos = demonstrations(EPISODES, memory)
    pairs = [[with_past(pair(k), 12) for k in range(3)]]
    data = preference_data(METHODS["rpro"], pairs, demos, processor, memory, mix=(0.8, 0.2), batch_size=40, seed=0)
    table, batch = data.rows.observation, data.batch(0).observation
    assert len(table.images) <= 2 * 15 + 3 * (12 + WINNER + LOSER) < len(table) * 3
    assert batch.images.shape == (40, 3, 3, 3, 64, 64) and batch.seen is None
    rows = torch.from_numpy(data.sampler.numbers(0))
    for place, row in enumerate(rows.tolist()):
        for slot, number in enumerate(table.seen[row].tolist()):
            wanted = table.images[number] if number >= 0 else torch.zeros_like(table.images[0])
            assert torch.equal(batch.images[place, :, slot], wanted)
    first = demos.seen[:6].tolist()
    assert first == [[-1, -1, 0], [-1, -1, 1], [-1, -1, 2], [-1, -1, 3], [-1, 0, 4], [-1, 1, 5]]


def test_a_pair_without_the_past_that_a_memory_needs_is_named():
    with pytest.raises(UserError, match="looks 8 steps back, but a pair of handover_block, seed 1, has 0 frames"):
        pair_states([pair(1)], Timing(HORIZON, history=3, interval=4), None)


def test_chunks_that_begin_with_the_present_pose_put_it_before_the_commands():
    plain = pair_states([pair(1)], Timing(HORIZON - 1), None)
    shifted = pair_states([pair(1)], Timing(HORIZON, first_slot="current"), None)
    for side in ("winner", "loser"):
        np.testing.assert_array_equal(getattr(shifted, side)[:, 0], shifted.poses)
        np.testing.assert_array_equal(getattr(shifted, side)[:, 1:], getattr(plain, side))


@pytest.mark.parametrize("name, real", [("rpro", 3 * LOSER_STATES), ("rpro_no_interpolation", 3), ("dagger", 0)])
def test_methods_differ_in_the_real_tuples_they_see(demos, processor, name, real):
    rows = build(name, demos, processor).rows
    assert int((~rows.identical).sum()) == real
    assert torch.equal(rows.winner[rows.identical], rows.loser[rows.identical])


@pytest.mark.parametrize(
    "entry, used",
    [
        ({"variant_of": "rpro", "loser_states": 2}, 2),
        ({"variant_of": "dagger_buffered_si", "loser_states": 2}, 2),
        ({"variant_of": "rpro_no_interpolation"}, 1),
        ({"code": "examples/ipo.py:IPO", "loser_states": 2}, 2),
        ({"code": "examples/ipo.py:IPO"}, None),
    ],
)
def test_objectives_say_how_many_loser_states_they_use(entry, used):
    assert ObjectiveConfig(**entry).row("mine").loser_states == used


@pytest.mark.parametrize("name", ["rpro_trajectory", "advantage_conditioned", "dagger"])
def test_loser_states_of_rpro_change_no_method_that_learns_from_no_tuples(name):
    """Methods without an entry of their own have the settings of `rpro`."""
    assert ObjectiveConfig(loser_states=2).row(name) == METHODS[name]


def test_the_loser_states_that_are_used_begin_at_the_shared_start():
    few, all_of_them = (pair_states([pair(1)], TIMING, count) for count in (2, None))
    assert few.from_loser.sum() == 2 and all_of_them.from_loser.sum() == LOSER_STATES
    np.testing.assert_array_equal(few.winner[:2], all_of_them.winner[:2])
    np.testing.assert_array_equal(few.winner[2:], all_of_them.winner[LOSER_STATES:])


def test_batches_have_the_shares_of_the_paper(demos, processor):
    first = build("rpro", demos, processor).batch(3).source
    later = build("rpro", demos, processor, rounds=2).batch(3).source
    assert torch.bincount(first, minlength=3).tolist() == [32, 0, 8]
    assert torch.bincount(later, minlength=3).tolist() == [28, 6, 6]


def test_batches_follow_from_the_step_number_alone(demos, processor):
    data, again = build("rpro", demos, processor), build("rpro", demos, processor)
    data.batch(0)
    assert torch.equal(data.batch(5).winner, again.batch(5).winner)
    assert not torch.equal(data.batch(5).winner, data.batch(6).winner)


def test_trajectories_compare_whole_pairs(demos, processor):
    data = build("rpro_trajectory", demos, processor, batch_size=40)
    batch = data.batch(0)
    assert len(batch) == 40 // SIDE_STATES
    for number in range(len(batch)):
        sides = batch.is_winner[batch.pair == number]
        is_demonstration = bool((batch.source[batch.pair == number] == 2).all())
        assert sides.tolist() == ([True] if is_demonstration else [True] * SIDE_STATES + [False] * SIDE_STATES)


def test_advantage_conditioning_labels_losers_and_imitates_what_was_done(demos, processor):
    rows = build("advantage_conditioned", demos, processor).rows
    assert rows.identical.all()
    negative = processor.tokenize(["Pass the red block to the right arm. Advantage: negative"])[0][0]
    labelled = (rows.observation.tokens == negative).all(dim=1)
    assert int(labelled.sum()) == 3 * LOSER_STATES and not labelled[rows.source == 2].any()


def test_every_row_is_read_with_and_without_its_indicator_whatever_was_read_before(demos, processor):
    data, again = (build("advantage_conditioned", demos, processor) for _ in range(2))
    half = len(data.rows) // 2
    assert torch.equal(data.rows.winner[:half], data.rows.winner[half:])
    assert torch.equal(data.rows.source[:half], data.rows.source[half:])
    plain = {tuple(tokens) for tokens in data.rows.observation.tokens[:half].tolist()}
    shares, seen = [], {}
    for step in range(40):
        batch = data.batch(step)
        bare = [tuple(tokens) in plain for tokens in batch.observation.tokens.tolist()]
        shares.append(np.mean(bare))
        for chunk, is_bare in zip(batch.winner.flatten(1).tolist(), bare, strict=True):
            seen.setdefault(tuple(chunk), set()).add(is_bare)
    assert np.mean(shares) == pytest.approx(0.3, abs=0.05)
    assert np.mean([len(kinds) == 2 for kinds in seen.values()]) > 0.9
    assert torch.equal(again.batch(7).observation.tokens, data.batch(7).observation.tokens)


def test_stored_prefixes_equal_those_computed_with_the_batch(demos, processor):
    torch.manual_seed(0)
    policy = HyVLAPolicy(CONFIG).eval()
    data = demonstrations_alone(demos, processor)
    stored = encode_rows(policy, data.rows.observation)
    rows = torch.tensor([7, 0, 21])
    with torch.no_grad():
        fresh = policy.encode(data.rows.observation.select(rows))
    torch.testing.assert_close(stored.select(rows).keys, fresh.keys, atol=1e-5, rtol=1e-5)
    assert len(data.rows) == 30


def test_prefixes_are_stored_only_where_all_of_them_fit(demos, processor):
    policy = HyVLAPolicy(CONFIG).eval()
    observation = demonstrations_alone(demos, processor).rows.observation
    gib = sum(value.nbytes for value in vars(encode_rows(policy, observation)).values()) / 2**30
    assert encode_rows(policy, observation, 0.99 * gib) is None
    assert len(encode_rows(policy, observation, 1.01 * gib)) == len(observation)
