"""What is written to disk comes back the same, and is readable without the lab."""

import dataclasses
import json

import numpy as np

from algos.smooth_interpolation import interpolate_pair
from rl_lab.records.episodes import read_episodes, read_pairs, write_episodes, write_pairs
from rl_lab.rollouts.collect import swap
from tests.support.episodes import episode, pair


def assert_equal(one, other):
    for item in dataclasses.fields(one):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if dataclasses.is_dataclass(a):
            assert_equal(a, b)
        else:
            np.testing.assert_array_equal(a, b, err_msg=item.name)


def test_pairs_come_back_in_order_bit_for_bit(tmp_path):
    pairs = [pair(seed) for seed in (4, 2, 9)]
    write_pairs(tmp_path / "pairs", pairs)
    for one, other in zip(read_pairs(tmp_path / "pairs"), pairs, strict=True):
        assert_equal(one, other)


def test_episodes_come_back_in_order_bit_for_bit(tmp_path):
    episodes = [episode(seed) for seed in (4, 2)]
    write_episodes(tmp_path / "demos", episodes)
    for one, other in zip(read_episodes(tmp_path / "demos"), episodes, strict=True):
        assert_equal(one, other)


def test_the_index_of_pairs_is_plain_json_and_the_arrays_need_no_pickle(tmp_path):
    write_pairs(tmp_path, [pair(1)])
    (row,) = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert row["id"] == "pair-0000" and row["winner_steps"] == 20 and row["loser_steps"] == 14
    with np.load(tmp_path / "pair-0000.npz", allow_pickle=False) as arrays:
        assert arrays["winner_poses"].shape == (21, 16)


def test_swapped_pairs_are_as_many_as_said_named_and_among_those_of_a_larger_share():
    pairs = [pair(seed) for seed in range(10)]
    few, many = (swap(pairs, share, 0, "collect/1") for share in (0.2, 0.5))
    places = [[i for i, one in enumerate(found) if one.corrector.endswith(", swapped")] for found, _ in (few, many)]
    assert [few[1], many[1]] == [2, 5] == list(map(len, places)) and set(places[0]) < set(places[1])
    for number, one in enumerate(many[0]):
        kept = pairs[number]
        sides = (kept.loser, kept.winner.beginning(14)) if number in places[1] else (kept.winner, kept.loser)
        assert_equal(one.winner, sides[0])
        assert_equal(one.loser, sides[1])
        # A correction goes on to success; as a failure it has as many states as the one that it is compared with.
        assert (~interpolate_pair(one, 8).identical).sum() == len(kept.loser.actions) - 8 + 1
    assert swap(pairs, 0.0, 0, "collect/1") == (pairs, 0)
