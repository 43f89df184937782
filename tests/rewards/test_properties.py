"""What holds for all answers: range, identity, symmetry, less reward for more error."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answers import REWARD_TYPES
from rewards.config import RewardConfig
from rewards.verifiers import best_assignment, box_iou, chamfer, discrete_frechet, dtw, path_distances, verifier_reward

coordinate = st.integers(0, 1000)
point = st.tuples(coordinate, coordinate).map(list)
box = st.tuples(*[st.integers(0, 900)] * 2, *[st.integers(1, 100)] * 2).map(
    lambda b: [*b[:2], b[0] + b[2], b[1] + b[3]]
)
points = st.lists(point, min_size=1, max_size=6)
words = st.lists(st.sampled_from(["grasp", "lift", "move left", "open", "place"]), min_size=1, max_size=6)
TRUTHS = {
    "box": box,
    "boxes": st.lists(box, min_size=1, max_size=5),
    "point": point.map(lambda p: {"point": p}),
    "points": points,
    "trajectory": points,
    "number": st.floats(-1e6, 1e6),
    "choice": st.sampled_from("ABCD"),
    "yes_no": st.sampled_from(["yes", "no"]),
    "count": st.integers(0, 50),
    "ordering": words,
}
pairs = st.one_of([st.tuples(st.just(name), truth, truth) for name, truth in TRUTHS.items()])
CONFIG = RewardConfig()


def written(truth) -> str:
    """A ground truth as an answer."""
    if isinstance(truth, dict):
        return str(tuple(truth["point"]))
    return ", ".join(truth) if isinstance(truth, list) and isinstance(truth[0], str) else str(truth)


def reward(reward_type: str, answer, truth, config: RewardConfig = CONFIG) -> float:
    text = answer if isinstance(answer, str) and answer.startswith("<") else f"<answer>{written(answer)}</answer>"
    return verifier_reward(text, truth, reward_type, config)


def test_every_type_with_a_verifier_is_tried():
    assert set(TRUTHS) | {"open"} == set(REWARD_TYPES)


@given(pairs)
def test_rewards_are_in_0_to_1_and_1_for_the_truth_itself(case):
    reward_type, truth, other = case
    assert 0.0 <= reward(reward_type, other, truth) <= 1.0
    assert reward(reward_type, truth, truth) == 1.0


@given(pairs, st.text(max_size=40))
def test_any_text_gives_a_reward_in_0_to_1(case, text):
    reward_type, truth, _ = case
    for whole in ("<", f"<answer>{text}</answer>", f"<think>{text}</think><answer>{written(truth)} {text}</answer>"):
        assert 0.0 <= reward(reward_type, whole if whole.startswith("<") else f"<{whole}", truth) <= 1.0


# A number's error is relative to the truth; what stays in one place is no answer to what does not.
SYMMETRIC = TRUTHS.keys() - {"number", "points", "trajectory"}


@given(st.one_of([st.tuples(st.just(name), TRUTHS[name], TRUTHS[name]) for name in sorted(SYMMETRIC)]))
def test_answer_and_truth_may_change_places(case):
    reward_type, one, other = case
    assert reward(reward_type, one, other) == pytest.approx(reward(reward_type, other, one))


@given(st.sampled_from(["point", "points", "trajectory"]), st.integers(0, 450), st.integers(0, 450))
def test_moving_further_away_never_helps(reward_type, one, other):
    near, far = sorted((one, other))
    truth = {"point": [100, 100]} if reward_type == "point" else [[100, 100], [500, 100]]
    moved = [[[x, y + by] for x, y in ([[100, 100]] if reward_type == "point" else truth)] for by in (near, far)]
    near_reward, far_reward = (reward(reward_type, move, truth) for move in moved)
    assert near_reward >= far_reward
    assert near == far or near_reward > far_reward


@given(st.floats(0.1, 100), st.floats(0, 10), st.floats(0, 10), st.sampled_from([-1, 1]))
def test_a_larger_relative_error_never_helps(truth, one, other, sign):
    near, far = sorted((one, other))
    assert reward("number", truth * (1 + sign * near), truth) >= reward("number", truth * (1 + sign * far), truth)


@given(box, st.integers(0, 100), st.integers(0, 100))
def test_sliding_a_box_away_never_helps(target, one, other):
    near, far = sorted((one, other))
    slid = [[target[0], target[1], target[2], target[3]] for _ in range(2)]
    rewards = []
    for answer, by in zip(slid, (near, far), strict=True):
        answer[0] = max(answer[0] - by, 0)
        rewards.append(reward("box", answer, target))
    assert rewards[0] >= rewards[1]


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_a_count_further_off_never_helps(truth, one, other):
    near, far = sorted((one, other), key=lambda value: abs(value - truth))
    config = RewardConfig(count=type(CONFIG.count)(partial_credit=0.5))
    assert reward("count", near, truth, config) >= reward("count", far, truth, config)


@given(st.lists(box, min_size=1, max_size=4), st.lists(box, min_size=1, max_size=4), st.randoms())
def test_the_order_of_boxes_does_not_matter_but_an_extra_or_missing_one_costs(answer, truth, random):
    shuffled = random.sample(answer, len(answer))
    assert reward("boxes", shuffled, truth) == pytest.approx(reward("boxes", answer, truth))
    assert reward("boxes", [*truth, [901, 901, 999, 999]], truth) < 1.0
    assert len(truth) == 1 or reward("boxes", truth[1:], truth) < 1.0


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_the_assignment_is_the_best_of_all(rows, columns, seed, rounded):
    score = np.random.default_rng(seed).normal(size=(rows, columns))
    score = np.round(score) if rounded else score
    chosen_rows, chosen_columns = best_assignment(score)
    assert len(set(chosen_rows)) == len(set(chosen_columns)) == min(rows, columns) == len(chosen_rows)
    tall = score if rows <= columns else score.T
    orders = itertools.permutations(range(tall.shape[1]), tall.shape[0])
    best = max(sum(tall[row, column] for row, column in enumerate(order)) for order in orders)
    assert score[chosen_rows, chosen_columns].sum() == pytest.approx(best)


@given(points, points)
def test_distances_of_paths_and_sets_are_symmetric_and_ordered(one, other):
    a, b = np.array(one, dtype=float), np.array(other, dtype=float)
    distance = path_distances(a, b)
    assert discrete_frechet(distance) == discrete_frechet(distance.T)
    assert dtw(distance) == pytest.approx(dtw(distance.T))
    assert discrete_frechet(distance) >= max(distance[0, 0], distance[-1, -1])
    assert chamfer(a, b) == pytest.approx(chamfer(b, a))
    assert chamfer(a, a) == 0


@given(box, box)
def test_iou_is_below_the_ratio_of_areas(one, other):
    areas = sorted(math.prod((b[2] - b[0], b[3] - b[1])) for b in (one, other))
    iou = box_iou(np.array([one], float), np.array([other], float))[0, 0]
    assert 0 <= iou <= areas[0] / areas[1] + 1e-12
