"""Whose turn it is."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.training.schedule import PARTS, Schedule, other


def order(schedule):
    done, turns = dict.fromkeys(PARTS, 0), []
    while (part := schedule.next(done)) is not None:
        turns.append(part)
        done[part] += 1
    return turns


def letters(schedule):
    return "".join(part[0] for part in order(schedule))


def test_interleaved_turns_are_spread_evenly():
    assert letters(Schedule({"grpo": 2, "rpro": 4})) == "rgrrgr"
    assert letters(Schedule({"grpo": 3, "rpro": 3})) == "grgrgr"


def test_a_configured_ratio_leaves_the_rest_of_the_longer_part_to_the_end():
    assert letters(Schedule({"grpo": 2, "rpro": 5}, ratio=(1.0, 1.0))) == "grgrrrr"


def test_the_lead_comes_before_the_first_turn_of_rpro_and_shares_count_from_there():
    assert letters(Schedule({"grpo": 4, "rpro": 4}, lead=2)) == "ggrgrrgr"
    assert letters(Schedule({"grpo": 2, "rpro": 1}, lead=9)) == "ggr", "no longer than there are batches"


@pytest.mark.parametrize("first", PARTS)
def test_a_sequence_does_one_part_after_the_other(first):
    schedule = Schedule({"grpo": 2, "rpro": 3}, first=first)
    assert letters(schedule) == ("ggrrr" if first == "grpo" else "rrrgg")
    assert schedule.open_parts({"grpo": 0, "rpro": 0}) == [first], "the other's workers prepare nothing yet"


def test_an_isolated_part_never_opens_the_other():
    schedule = Schedule({"rpro": 3}, first="rpro")
    assert letters(schedule) == "rrr" and schedule.open_parts({"grpo": 0, "rpro": 3}) == []


def test_a_stopped_part_takes_no_turn():
    schedule = Schedule({"grpo": 2, "rpro": 2})
    schedule.stopped.add("grpo")
    assert letters(schedule) == "rr"


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 4))
def test_every_turn_comes_exactly_once_and_no_part_strays_from_its_share(num_grpo, num_rpro, lead):
    schedule = Schedule({"grpo": num_grpo, "rpro": num_rpro}, lead=lead)
    turns = order(schedule)
    assert turns.count("grpo") == num_grpo and turns.count("rpro") == num_rpro
    for count in range(schedule.lead, len(turns)):
        done = {part: turns[:count].count(part) for part in PARTS}
        if num_grpo > schedule.lead and num_rpro:
            for part in PARTS:
                assert schedule.ahead(part, done) <= 1 + schedule.weights[part] / schedule.weights[other(part)]


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_all_turns_come_whoever_is_ready_and_nobody_is_ahead_by_more_than_the_slack(grpo, rpro, lead, slack, random):
    schedule = Schedule({"grpo": grpo, "rpro": rpro}, lead=lead)
    done = dict.fromkeys(PARTS, 0)
    for _ in range(2000):
        if schedule.next(done) is None:
            break
        ready = [part for part in PARTS if random.random() < 0.5]
        part = schedule.choose(done, ready, priority="share", slack=slack)
        if part is not None:
            both_open = len(schedule.open_parts(done)) == 2 and done["grpo"] >= schedule.lead
            assert part in ready and (not both_open or schedule.ahead(part, done) < slack)
            done[part] += 1
    assert done == {"grpo": grpo, "rpro": rpro}


def test_priority_decides_between_two_ready_batches_until_the_slack_is_used_up():
    schedule = Schedule({"grpo": 6, "rpro": 6})
    done, turns = dict.fromkeys(PARTS, 0), []
    for _ in range(6):
        turns.append(schedule.choose(done, PARTS, priority="rpro", slack=2))
        done[turns[-1]] += 1
    assert turns == ["rpro", "rpro", "grpo", "rpro", "grpo", "rpro"]


def test_a_part_that_is_too_far_ahead_waits_even_if_only_it_is_ready():
    schedule = Schedule({"grpo": 6, "rpro": 6})
    assert schedule.choose({"grpo": 0, "rpro": 2}, ["rpro"], priority="share", slack=2) is None
    assert schedule.choose({"grpo": 6, "rpro": 0}, ["rpro"], priority="grpo", slack=2) == "rpro"


def test_both_cannot_be_ahead_at_once():
    schedule = Schedule({"grpo": 3, "rpro": 12})
    for g, r in itertools.product(range(4), range(13)):
        assert min(schedule.ahead(part, {"grpo": g, "rpro": r}) for part in PARTS) <= 0
