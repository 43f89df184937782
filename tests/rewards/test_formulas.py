"""Worked values of every formula, by hand; proxies, and rewards of episodes."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.spatial_qa.items import run_lengths
from rewards.actions.ensemble import success
from rewards.config import BoxesConfig, CountConfig, DistanceConfig, NumberConfig, TrajectoryConfig
from rewards.proxies import constant, short
from rewards.verifiers import (
    DIAGONAL,
    box_iou,
    box_reward,
    boxes_reward,
    chamfer,
    choice_reward,
    count_reward,
    decode_mask,
    discrete_frechet,
    distance_to_mask,
    dtw,
    longest_common_subsequence,
    number_reward,
    ordering_reward,
    path_distances,
    point_reward,
    points_reward,
    resample,
    trajectory_reward,
    yes_no_reward,
)
from tests.support.episodes import episode

POINT = DistanceConfig()
TENTH = DIAGONAL / 10
"""The distance at which exp(-d / 0.1) is 1/e: 141.42."""


def test_iou_of_half_overlapping_squares_is_one_third():
    assert box_reward("[0, 0, 10, 10]", [5, 0, 15, 10]) == pytest.approx(50 / 150)
    assert box_reward("[0, 0, 10, 10]", [0, 0, 10, 10]) == 1.0
    assert box_reward("[0, 0, 10, 10]", [10, 0, 20, 10]) == 0.0
    assert box_reward("[2, 2, 4, 4]", [0, 0, 10, 10]) == pytest.approx(4 / 100)


def test_a_box_without_area_and_two_boxes_for_one_score_nothing():
    assert box_reward("[10, 10, 0, 0]", [0, 0, 10, 10]) == 0.0
    assert box_reward("[5, 5, 5, 5]", [0, 0, 10, 10]) == 0.0
    assert box_reward("[0, 0, 10, 10] [0, 0, 10, 10]", [0, 0, 10, 10]) == 0.0
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0.0


def test_matched_iou_pays_for_missing_and_extra_boxes():
    one, two, third = [0, 0, 10, 10], [20, 20, 30, 30], [15, 20, 25, 30]
    assert boxes_reward(f"{two} {one}", [one, two], BoxesConfig()) == 1.0
    assert boxes_reward(f"{one}", [one, two], BoxesConfig()) == 0.5
    assert boxes_reward(f"{one} {two} {third}", [one, two], BoxesConfig()) == pytest.approx(2 / 3)
    assert boxes_reward(f"{third} {one}", [one, two], BoxesConfig()) == pytest.approx((1 + 1 / 3) / 2)
    assert boxes_reward(f"{one}", [one, two], BoxesConfig(missing_penalty=3)) == 0.25
    assert boxes_reward(f"{one} {two} {third}", [one, two], BoxesConfig(extra_penalty=0)) == 1.0


def test_the_same_box_many_times_is_no_way_to_more_reward():
    one, two = [0, 0, 10, 10], [20, 20, 30, 30]
    assert boxes_reward(f"{one} " * 8, [one, two], BoxesConfig()) == pytest.approx(1 / 8)


def test_a_point_loses_by_e_every_tenth_of_the_diagonal():
    truth = {"point": [500, 500]}
    assert point_reward("(500, 500)", truth, POINT) == 1.0
    assert point_reward("(600, 600)", truth, POINT) == pytest.approx(math.exp(-1))
    assert point_reward("(600, 600)", truth, DistanceConfig(scale=0.2)) == pytest.approx(math.exp(-0.5))
    assert point_reward("(500, 500) (500, 500)", truth, POINT) == 0.0
    assert point_reward("(600, 600)", [500, 500], POINT) == pytest.approx(math.exp(-1))


def test_a_point_inside_the_mask_scores_one_and_outside_by_the_nearest_pixel():
    mask = run_lengths(np.array([[0, 1], [0, 0]], dtype=bool))
    assert mask == {"size": [2, 2], "counts": [1, 1, 2]}
    truth = {"mask": mask}
    for inside in ("(750, 250)", "(500, 0)", "(1000, 500)"):
        assert point_reward(inside, truth, POINT) == 1.0
    assert point_reward("(400, 600)", truth, POINT) == pytest.approx(math.exp(-1))
    both = {"mask": mask, "point": [0, 1000]}
    assert point_reward("(0, 1000)", both, POINT) == 1.0
    assert point_reward("(500, 500)", {"mask": None, "point": [500, 500]}, POINT) == 1.0


def test_mask_runs_survive_encoding_and_may_start_with_ones():
    for pixels in (np.eye(3, 4) > 0, np.ones((2, 3), bool), np.arange(12).reshape(4, 3) % 2 == 0):
        assert np.array_equal(decode_mask(run_lengths(pixels)), pixels)
    assert distance_to_mask(np.eye(2) > 0, 750, 250) == pytest.approx(250)


def test_chamfer_averages_both_directions():
    a, b = np.array([[0.0, 0.0]]), np.array([[0.0, 0.0], [30.0, 40.0]])
    assert chamfer(a, b) == chamfer(b, a) == pytest.approx((0 + 25) / 2)
    expected = math.exp(-12.5 / DIAGONAL / 0.1)
    assert points_reward("(0, 0)", [[0, 0], [30, 40]], POINT) == pytest.approx(expected / 2)
    assert points_reward("(30, 40), (0, 0)", [[0, 0], [30, 40]], POINT) == 1.0


def test_points_are_paid_for_their_number_too():
    two = [[450, 500], [550, 500]]
    centre = math.exp(-50 / DIAGONAL / 0.1)  # 0.70: a distance of 50 from both
    assert points_reward("(500, 500)", two, POINT) == pytest.approx(centre / 2)
    assert points_reward("(500, 500) (500, 500)", two, POINT) == 0.0
    # One step to each side of the centre: a distance of 49, and 2 of 100 apart.
    apart = 2 * 2 / 100 * math.exp(-49 / DIAGONAL / 0.1)
    assert points_reward("(499, 500) (501, 500)", two, POINT) == pytest.approx(apart)
    assert points_reward("(475, 500) (525, 500)", two, POINT) == pytest.approx(math.exp(-25 / DIAGONAL / 0.1))
    assert points_reward("(450, 500) " * 60, [[450, 500]], POINT) == pytest.approx(1 / 60)
    assert points_reward("(450, 500) (550, 500) " * 30, two, POINT) == pytest.approx(2 / 60)
    grid = [[x, y] for x in range(62, 1000, 125) for y in range(62, 1000, 125)]
    assert len(grid) == 64 and points_reward(str(grid), two, POINT) < 2 / 64
    copied = [[450, 500], [450, 500], [550, 500]]
    assert points_reward(str(copied), copied, POINT) == 1.0


def test_resampling_keeps_ends_and_ignores_doubled_points():
    path = np.array([[0.0, 0.0], [0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    assert np.allclose(resample(path, 5), [[0, 0], [5, 0], [10, 0], [10, 5], [10, 10]])
    assert np.allclose(resample(np.array([[3.0, 4.0]]), 3), [[3, 4]] * 3)


def test_frechet_is_the_longest_leash_and_dtw_the_mean_one():
    straight, detour = np.array([[0.0, 0], [1, 0], [2, 0]]), np.array([[0.0, 0], [1, 3], [2, 0]])
    distance = path_distances(straight, detour) * DIAGONAL
    assert discrete_frechet(distance) == pytest.approx(3)
    assert dtw(distance) == pytest.approx(1)
    late = path_distances(straight, straight[[0, 0, 1, 2]]) * DIAGONAL
    assert discrete_frechet(late) == dtw(late) == 0
    hand = np.array([[1.0, 5.0, 9.0], [6.0, 2.0, 3.0]])
    assert discrete_frechet(hand) == 3.0
    assert dtw(hand) == pytest.approx((1 + 2 + 3) / 3)


def test_a_trajectory_weighs_shape_and_end():
    truth = [[100, 100], [500, 100]]
    config = TrajectoryConfig()
    assert trajectory_reward("(100, 100) (300, 100) (500, 100)", truth, config) == pytest.approx(1.0)
    # Shifted by a tenth of the diagonal: both distances are 0.1.
    shifted = f"(100, {100 + TENTH}) (500, {100 + TENTH})"
    assert trajectory_reward(shifted, truth, config) == pytest.approx(math.exp(-1))
    # Backwards: Frechet and end point are both the length of the path.
    backwards = math.exp(-400 / DIAGONAL / 0.1)
    assert trajectory_reward("(500, 100) (100, 100)", truth, config) == pytest.approx(backwards)
    # Right end, wrong start: the ends agree, the leash is 100.
    late = 0.3 + 0.7 * math.exp(-100 / DIAGONAL / 0.1)
    assert trajectory_reward("(200, 100) (500, 100)", truth, config) == pytest.approx(late)
    by_mean = TrajectoryConfig(frechet_weight=0, dtw_weight=1, endpoint_weight=0)
    assert trajectory_reward(shifted, truth, by_mean) == pytest.approx(math.exp(-1), rel=1e-6)


def test_a_path_that_stays_put_earns_nothing():
    truth, config = [[450, 500], [550, 500]], TrajectoryConfig()
    for stays in ("(500, 500)", "(550, 500)", "(500, 500) " * 15):
        assert trajectory_reward(stays, truth, config) == 0.0
    # A quarter of the way, at the right end: the leash is 75, and half of what distances pay is left.
    crawls = 0.5 * (0.3 + 0.7 * math.exp(-75 / DIAGONAL / 0.1))
    assert trajectory_reward("(525, 500) (550, 500)", truth, config) == pytest.approx(crawls)
    half = 0.3 + 0.7 * math.exp(-50 / DIAGONAL / 0.1)
    assert trajectory_reward("(500, 500) (550, 500)", truth, config) == pytest.approx(half)
    assert trajectory_reward("(500, 500)", [[500, 500]], config) == 1.0


def test_relative_error_decays_smoothly():
    assert number_reward("0.5 m", 0.5, NumberConfig()) == 1.0
    assert number_reward("0.75", 0.5, NumberConfig()) == pytest.approx(math.exp(-1))
    assert number_reward("0.25", 0.5, NumberConfig()) == pytest.approx(math.exp(-1))
    assert number_reward("1e308", 0.5, NumberConfig()) == 0.0
    assert number_reward("0.005", 0, NumberConfig(floor=0.01)) == pytest.approx(math.exp(-1))
    for odd in ("far", "9" * 400, "-" + "9" * 400, "3.7.1"):
        assert number_reward(odd, 3.7, NumberConfig()) == count_reward(odd, 3, CountConfig()) == 0.0


def test_counts_are_exact_with_credit_on_request():
    assert count_reward("4", 4, CountConfig()) == 1.0
    assert count_reward("3", 4, CountConfig()) == 0.0
    assert count_reward("3", 4, CountConfig(partial_credit=0.5)) == pytest.approx(0.5 * 0.75)
    assert count_reward("9", 4, CountConfig(partial_credit=0.5)) == 0.0
    assert count_reward("1", 0, CountConfig(partial_credit=0.5)) == 0.0


def test_choices_and_yes_or_no_match_exactly():
    assert choice_reward("(c) the cup", "C") == 1.0
    assert choice_reward("B", "C") == choice_reward("cup", "C") == 0.0
    assert yes_no_reward("Yes.", "yes") == 1.0
    assert yes_no_reward("yes or no", "yes") == 0.0


def test_orderings_score_by_their_longest_common_subsequence():
    truth = ["a", "b", "c", "d"]
    assert longest_common_subsequence("abcd", "acbd") == 3
    assert ordering_reward("a, b, c, d", truth) == 1.0
    assert ordering_reward("A > c > b > d", truth) == 0.75
    assert ordering_reward("b, a, c", truth) == 0.5
    assert ordering_reward("d, c, b, a", truth) == 0.25
    assert ordering_reward("a, b, c, d, a, b, c, d", truth) == 0.5
    assert ordering_reward("x", truth) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: box_reward("", [0, 0, 0, 10]),
        lambda: box_reward("", [0, 0, 10]),
        lambda: boxes_reward("", [], BoxesConfig()),
        lambda: boxes_reward("", [[0, 0, 10, 10]] * 65, BoxesConfig()),
        lambda: point_reward("", {"point": [0, 1001]}, POINT),
        lambda: point_reward("", {"point": [0, math.nan]}, POINT),
        lambda: point_reward("", {}, POINT),
        lambda: point_reward("", {"mask": {"size": [2, 2], "counts": [1, 1]}}, POINT),
        lambda: point_reward("", {"mask": {"size": [2, 2], "counts": [4]}}, POINT),
        lambda: point_reward("", {"mask": {"size": [10**6, 10**6], "counts": [10**12]}}, POINT),
        lambda: points_reward("", "cup", POINT),
        lambda: points_reward("", [[10**400, 0]], POINT),
        lambda: trajectory_reward("", [[0, 0], [1]], TrajectoryConfig()),
        lambda: number_reward("", math.inf, NumberConfig()),
        lambda: number_reward("", "0.5", NumberConfig()),
        lambda: number_reward("1", 10**400, NumberConfig()),
        lambda: count_reward("1", 10**400, CountConfig()),
        lambda: count_reward("", 1.5, CountConfig()),
        lambda: count_reward("", True, CountConfig()),
        lambda: choice_reward("", "AB"),
        lambda: yes_no_reward("", "maybe"),
        lambda: ordering_reward("", ["a, b"]),
        lambda: ordering_reward("", []),
        lambda: ordering_reward("", [1]),
    ],
)
def test_a_wrong_ground_truth_is_an_error_in_one_line(call):
    with pytest.raises(ValueError, match="^[^\n]{10,300}$"):
        call()


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5))
def test_values_are_in_range_and_one_for_each_completion(texts):
    for reward in (constant, short):
        values = reward([""] * len(texts), texts)
        assert len(values) == len(texts)
        assert all(0 < value <= 1 for value in values)


def test_shorter_pays_more():
    values = short([""] * 3, ["", " word" * 20, " word" * 40])
    assert values == [1.0, 0.5, 1 / 3]
    assert short([""], [[{"role": "assistant", "content": "one two"}]]) == [1 / 1.1]


def test_success_is_one_for_reached_goals_and_zero_otherwise():
    reached = episode(1)
    missed = dataclasses.replace(reached, success=False, failure="timeout")
    assert success([reached, missed, reached]) == [1.0, 0.0, 1.0]
