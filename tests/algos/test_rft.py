"""Selection of traces for rejection-sampling fine-tuning: hand values, every rule, what always holds."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algos import rft
from algos.rft import (
    LEAST_REWARD,
    REASONS,
    SKETCH,
    RFTOptions,
    band_reason,
    candidate,
    distance,
    likeness,
    most_diverse,
    normalised,
    repetition,
    select,
    sketch,
)
from tests.support.refusals import refusal

WORDS = [f"w{i}" for i in range(400)]


def made(key, text, reward=1.0, tokens=None, finished=True, judge=None, options=None):
    tokens = list(range(len(text.split()))) if tokens is None else tokens
    one = candidate(key, text, tokens, finished, reward, options or RFTOptions())
    return replace(one, judge_score=judge)


WRONG = [made(90, "wrong", reward=0.0), made(91, "no reward", reward=None)]
"""Make an item a partial success."""


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition([1, 2, 3, 4, 5], 2) == 0.0
    assert repetition([1, 2, 1, 2, 1], 2) == 0.5  # 12 21 12 21: two of four
    assert repetition([7] * 11, 4) == pytest.approx(1 - 1 / 8)
    assert repetition([7, 7, 7], 4) == 0.0 and repetition([], 4) == 0.0
    assert repetition(np.array([2**31 - 1, 0, 2**31 - 1, 0], np.int32), 1) == 0.5


def test_likeness_is_jaccards_of_shingles():
    a, b = sketch("the red cup is near", 2), sketch("the red cup is far", 2)
    assert likeness(a, b) == pytest.approx(3 / 5) and distance(a, b) == pytest.approx(2 / 5)
    assert likeness(a, a) == 1.0 and likeness(a, sketch("other words here", 2)) == 0.0
    assert likeness(sketch("one", 3), sketch("one", 3)) == 1.0 and len(sketch("a b", 3)) == 1
    assert likeness(sketch("", 3), sketch("", 3)) == 1.0 and likeness(sketch("", 3), a) == 0.0
    assert likeness(sketch("(1, 2)", 1), sketch("( 1 ,2 )", 1)) == 1.0


def test_order_of_words_and_repeats_matter_as_they_should():
    assert likeness(sketch("a b c", 3), sketch("c b a", 3)) == 0.0
    assert likeness(sketch("a b a b a b", 2), sketch("a b a", 2)) == 1.0


def test_a_sketch_estimates_the_likeness_of_long_texts():
    rng = np.random.default_rng(0)
    words = [f"x{i}" for i in range(6000)]
    for shared in (1000, 2500, 4000):
        a = sketch(" ".join(words[:4000]), 1)
        b = sketch(" ".join(rng.permutation(words[4000 - shared : 8000 - shared])), 1)
        other = len(words[4000 - shared : 8000 - shared])
        true = shared / (4000 + other - shared)
        assert len(a) == SKETCH and abs(likeness(a, b) - true) < 5 * 0.5 / np.sqrt(SKETCH)
        assert likeness(a, b) == likeness(b, a)


def test_normalisation_ignores_case_blanks_and_compatible_forms():
    assert normalised("  The\tＲed \n cup ") == "the red cup" == normalised("the red CUP")


@pytest.mark.parametrize(
    ("correct", "rewarded", "reason"),
    [(0, 8, "too_hard"), (1, 8, None), (7, 8, None), (8, 8, "too_easy"), (0, 0, "too_hard")],
)
def test_partial_success_is_strictly_inside_the_band(correct, rewarded, reason):
    assert band_reason(correct, rewarded, RFTOptions()) == reason


def test_the_band_is_configurable():
    assert band_reason(2, 8, RFTOptions(low=0.25)) == "too_hard"
    assert band_reason(6, 8, RFTOptions(high=0.75)) == "too_easy"
    assert band_reason(8, 8, RFTOptions(high=None)) is None


def test_every_rule_drops_what_breaks_it():
    options = RFTOptions(max_tokens=20, min_judge_score=0.6, max_per_item=2, max_likeness=0.7, max_repetition=0.3)
    long = " ".join(WORDS[:12])
    traces = {
        "unrewarded": made(0, "a b c", reward=float("nan"), options=options),
        "incorrect": made(1, "a b c d", reward=0.4, options=options),
        "unfinished": made(2, "a b c e", finished=False, options=options),
        "overlong": made(3, "a", tokens=list(range(21)), options=options),
        "repetitive": made(4, "a a", tokens=[5] * 10, options=options),
        "unjudged": made(5, "x y z", options=options),
        "low_score": made(6, "x y z", judge=0.5, options=options),
        "duplicate": made(7, f" {long.upper()} ", judge=0.8, options=options),
        "near_duplicate": made(8, long + " end", judge=0.8, options=options),
        "surplus": made(9, " ".join(WORDS[11:25]), tokens=[1, 2, 3], judge=0.7, options=options),
        "best": made(10, long, judge=0.9, options=options),
        "other": made(11, "all of this is new", judge=0.6, options=options),
    }
    wanted = [None if name in ("best", "other") else name for name in traces]
    # shingle 3: the surplus shares nothing with either and loses the tie only if it ranks behind "other"
    traces["surplus"] = replace(traces["surplus"], sketch=np.union1d(traces["best"].sketch[:4], [np.uint64(1)]))
    found = select(list(traces.values()), options)
    assert found == wanted
    assert Counter(filter(None, found)) == dict.fromkeys([r for r in REASONS if not r.startswith("too_")], 1)
    assert select([made(0, "a b c")], RFTOptions()) == ["too_easy"]
    assert select([made(0, "a b c", reward=0.0), WRONG[1]], RFTOptions()) == ["too_hard", "unrewarded"]


def test_the_first_reason_counts():
    never = made(0, "a", reward=0.0, finished=False, tokens=[1] * 30_000)
    assert select([never], RFTOptions()) == ["too_hard"]
    assert select([never, made(1, "b c d")], RFTOptions()) == ["incorrect", None]


def test_a_nearly_equal_neighbour_of_a_dropped_trace_may_stay():
    # a ~ b ~ c but not a ~ c: b falls to the better a, and c is compared with a only
    texts = [" ".join(WORDS[i : i + 20]) for i in (0, 2, 4)]
    traces = [made(i, text, judge=1 - i / 10) for i, text in enumerate(texts)]
    assert select([*traces, *WRONG], RFTOptions(max_likeness=0.7))[:3] == [None, "near_duplicate", None]


def test_the_better_of_two_duplicates_stays():
    for better, worse in (({"judge": 0.9}, {"judge": 0.8}), ({"reward": 2.0}, {}), ({"tokens": [1]}, {})):
        found = select([made(0, "a b c", **worse), made(1, "A b  c", **better), *WRONG], RFTOptions())
        assert found[:2] == ["duplicate", None]


def test_the_most_diverse_are_far_from_each_other():
    near = [sketch(" ".join(WORDS[:20]) + f" {i}", 3) for i in range(5)]
    far = [sketch(" ".join(WORDS[20 * i : 20 * i + 20]), 3) for i in (2, 3)]
    assert sorted(most_diverse([near[0], *near[1:], *far], 3)) == [0, 5, 6]
    assert most_diverse(far, 3) == [0, 1] and most_diverse([], 3) == []
    same = [near[0]] * 4
    assert most_diverse(same, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"low": 0.5, "high": 0.5}, "the band (0.5, 0.5)"),
        ({"low": 1.0, "high": None}, "the band (1.0, None)"),
        ({"min_reward": float("nan")}, "min_reward is nan"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"ngram": 0}, "ngram is 0"),
        ({"max_per_item": 0}, "max_per_item is 0"),
        ({"max_likeness": 1.5}, "max_likeness is 1.5"),
        ({"max_repetition": -0.1}, "max_repetition is -0.1"),
        ({"min_judge_score": float("inf")}, "min_judge_score is inf"),
    ],
)
def test_settings_that_cannot_work_are_one_line(wrong, part):
    assert part in refusal(RFTOptions, **wrong, by=ValueError)


OPTIONS = RFTOptions(min_judge_score=0.5, max_per_item=2, max_likeness=0.6, max_tokens=12, shingle=2, high=None)
TRACES = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcdefg"), max_size=9).map(" ".join),
        st.sampled_from([None, 0.0, 1.0, 1.0, 2.0]),
        st.lists(st.integers(0, 5), max_size=14),
        st.sampled_from([True, True, True, False]),
        st.sampled_from([None, 0.4, 0.6, 0.6, 0.9]),
    ),
    max_size=16,
)


def built(rows):
    return [
        made(key, text, reward, tokens, finished, judge, OPTIONS)
        for key, (text, reward, tokens, finished, judge) in enumerate(rows)
    ]


@settings(max_examples=60, deadline=None)
@given(TRACES, st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_nothing(rows, random):
    one = built(rows)
    reasons = dict(zip(range(len(one)), select(one, OPTIONS), strict=True))
    shuffled = list(one)
    random.shuffle(shuffled)
    assert dict(zip((c.key for c in shuffled), select(shuffled, OPTIONS), strict=True)) == reasons
    assert select(one, OPTIONS) == list(reasons.values())


@settings(max_examples=60, deadline=None)
@given(TRACES)
def test_all_that_is_kept_satisfies_all_rules(rows):
    reasons = select(built(rows), OPTIONS)
    assert all(reason is None or reason in REASONS for reason in reasons)
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    assert len(kept) <= OPTIONS.max_per_item
    for _, reward, tokens, finished, judge in kept:
        assert reward >= LEAST_REWARD and finished and len(tokens) <= OPTIONS.max_tokens
        assert repetition(tokens, OPTIONS.ngram) <= OPTIONS.max_repetition and judge >= OPTIONS.min_judge_score
    texts = [normalised(row[0]) for row in kept]
    assert len(set(texts)) == len(texts)
    sketches = [sketch(text, OPTIONS.shingle) for text in texts]
    assert all(likeness(a, b) <= OPTIONS.max_likeness for i, a in enumerate(sketches) for b in sketches[:i])
    assert len(kept) + sum(map(bool, reasons)) == len(rows)
    good = [row for row, reason in zip(rows, reasons, strict=True) if reason in (None, "surplus")]
    assert len(kept) == min(len(good), OPTIONS.max_per_item)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join), min_size=3, max_size=3))
def test_the_distance_is_a_metric(texts):
    a, b, c = (sketch(text, 2) for text in texts)
    assert distance(a, b) == distance(b, a) and distance(a, a) == 0.0
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12


def test_hashes_are_the_same_in_every_process():
    assert rft.sketch("the red cup", 3).tolist() == [36622206720636015]


def graded(*rewards):
    return [
        made(number, f"answer {number} {'abcdefgh'[number]}", reward=reward) for number, reward in enumerate(rewards)
    ]


def test_graded_rewards_are_kept_from_half_and_from_their_items_mean_on():
    assert select(graded(0.993, 0.9, 0.2, 0.1), RFTOptions(max_likeness=1.0)) == [None, None, "incorrect", "incorrect"]
    assert select(graded(0.993, 0.9, 0.94), RFTOptions(max_likeness=1.0)) == [None, "incorrect", "incorrect"]
    assert set(select(graded(0.4, 0.3, 0.0), RFTOptions())) == {"too_hard"}
    assert set(select(graded(0.7, 0.7, 0.7), RFTOptions())) == {"too_easy"}
    assert set(select(graded(0.993, 0.2), RFTOptions(min_reward=1.0))) == {"too_hard"}, "what is asked for is done"


@given(st.lists(st.sampled_from([None, 0.0, 1.0]), min_size=1, max_size=8))
def test_rewards_of_0_and_1_need_no_other_rule_than_correct_ones(rewards):
    assert select(graded(*rewards), RFTOptions()) == select(graded(*rewards), RFTOptions(min_reward=1.0))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_of_graded_rewards_the_best_is_kept_unless_all_are_bad_or_alike(rewards):
    reasons = select(graded(*rewards), RFTOptions(max_likeness=1.0))
    if max(rewards) >= LEAST_REWARD and min(rewards) < max(rewards) - 1e-6:
        assert reasons[rewards.index(max(rewards))] is None
        assert all(reward >= np.mean(rewards) - 1e-6 for reward, why in zip(rewards, reasons, strict=True) if not why)
    else:
        assert None not in reasons or min(rewards) < max(rewards)
