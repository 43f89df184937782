"""The guard: finds harm that is there, lets noise be, blames who did it, and does what is configured."""

import dataclasses
import json

import numpy as np
import pytest

from rl_lab.config.joint import GuardConfig
from rl_lab.records.types import Exam, known_mean
from rl_lab.training.guard import Guard, paired_fall

N = 60


def scores(rate, seed=0, n=N):
    """0 or 1, with each of n items solved if its own fixed number is below the rate."""
    return [float(value < rate) for value in np.random.default_rng(seed).permutation(np.linspace(0, 1, n))]


def exam(turn, language=0.6, actions=0.6):
    return Exam(turn, {"language": scores(language, 1), "actions": scores(actions, 2)})


def started(**config):
    guard = Guard(GuardConfig(**config))
    assert guard.examine(exam(0)) == []
    return guard


def test_the_bound_is_the_mean_of_paired_differences_plus_its_normal_quantile():
    found = paired_fall([0.0, 1.0, 0.0, None], [1.0, 1.0, 1.0, 1.0], 0.975)
    spread = np.std([-1, 0, -1], ddof=1) / 3**0.5
    assert (found.difference, found.n) == (pytest.approx(-2 / 3), 3)
    assert found.bound == pytest.approx(-2 / 3 + 1.959964 * spread)
    assert paired_fall([1.0, None], [1.0, 0.0], 0.975) is None, "one pair has no spread"


def test_a_clean_run_is_not_touched():
    guard = started()
    for turn, rate in enumerate([0.62, 0.55, 0.65, 0.6, 0.7, 0.62], start=1):
        assert guard.examine(exam(turn, language=rate, actions=1.2 - rate)) == []
    assert guard.good == 6 and guard.strikes == {}


@pytest.mark.parametrize("against", ["mean", "start"])
@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_on_pure_noise_the_rate_of_false_alarms_is_the_one_claimed(against, rate):
    """Graded and binary scores. 5 % are claimed; the bound is a normal one, and harmful ones stay out of the mean."""
    draw, false, exams = np.random.default_rng(3), np.zeros(8), 0
    for _ in range(300):
        guard = Guard(GuardConfig(allowed=0.0, confidence=0.95, against=against))
        exams += 2
        for turn in range(9):
            both = {"language": draw.beta(8 * rate, 8 - 8 * rate, N), "actions": (draw.random(N) < rate).astype(float)}
            found = guard.examine(Exam(turn, {skill: row.tolist() for skill, row in both.items()}))
            false[turn - 1] += len(found)
    assert 0.03 < false.sum() / (8 * exams) < 0.08 and false[-1] / exams < 0.1


def test_a_fall_from_what_was_learned_is_found_and_one_lucky_examination_is_none():
    guard, draw = started(), np.random.default_rng(0)
    for turn in range(1, 6):
        assert guard.examine(exam(turn, language=0.9)) == []
    (harm,) = guard.examine(exam(6, language=0.62))
    assert harm.skill == "language" and harm.since == 5
    lucky = Guard(GuardConfig(allowed=0.0))
    for turn, rate in enumerate([0.5, 0.5, 0.68, 0.5]):
        both = {skill: (draw.random(N) < rate).astype(float).tolist() for skill in ("language", "actions")}
        assert lucky.examine(Exam(turn, both)) == []


def test_a_score_that_is_no_number_is_harm_and_the_suspect_is_blamed():
    guard = started()
    (harm,) = guard.examine(Exam(1, exam(1).scores | {"language": [float("nan")] * N}))
    event = guard.decide(harm, Exam(1, {"language": [float("nan")] * N}), scores(0.6, 1), can_freeze=True)
    assert (harm.skill, event.objective, event.action) == ("language", "rpro", "lower")


def test_noise_of_skills_that_stay_equal_is_hardly_ever_taken_for_harm():
    draw, found = np.random.default_rng(0), 0
    for _ in range(200):
        guard = Guard(GuardConfig())
        for turn in range(8):  # other items are solved every time, so all differences are noise
            both = {skill: (draw.random(N) < 0.5).astype(float).tolist() for skill in ("language", "actions")}
            found += bool(guard.examine(Exam(turn, both)))
    assert found <= 0.01 * 200 * 8


@pytest.mark.parametrize(
    ("harmed", "suspect"), [({"language": 0.2}, "rpro"), ({"actions": 0.2}, "grpo")], ids=["language", "actions"]
)
def test_a_skill_that_collapses_brings_the_other_objective_under_suspicion(harmed, suspect):
    guard = started()
    (harm,) = guard.examine(exam(5, **harmed))
    assert (harm.skill, harm.suspect, harm.since) == (next(iter(harmed)), suspect, 0)
    assert harm.fall.bound < -0.1 and guard.good == 0


def test_the_suspect_is_blamed_only_if_the_skill_comes_back_without_what_it_did():
    guard, now = started(), exam(5, language=0.2)
    (harm,) = guard.examine(now)
    event = guard.decide(harm, now, scores(0.55, 1), can_freeze=True)
    assert (event.objective, event.action) == ("rpro", "lower") and event.given_back == pytest.approx(0.35, abs=0.02)
    assert "rpro is to blame" in event.text and "multiplied by 0.3" in event.text
    acquitted = guard.decide(harm, now, scores(0.25, 1), can_freeze=True)
    assert (acquitted.objective, acquitted.action) == ("grpo", "none") and "nothing is done" in acquitted.text
    assert guard.strikes == {"rpro": 1}


def test_actions_follow_in_their_order_and_the_last_is_repeated():
    guard = started(actions=("lower", "freeze", "roll_back"))
    found = []
    for turn in range(1, 5):
        now = exam(turn, language=0.2)
        (harm,) = guard.examine(now)
        found.append(guard.decide(harm, now, scores(0.6, 1), can_freeze=True).action)
    assert found == ["lower", "freeze", "roll_back", "roll_back"]


def test_an_objective_that_trains_nothing_else_is_stopped_instead_of_frozen():
    guard, now = started(actions=("freeze",)), exam(5, actions=0.2)
    (harm,) = guard.examine(now)
    assert guard.decide(harm, now, scores(0.6, 2), can_freeze=False).action == "stop"


def test_no_more_is_done_while_a_skill_recovers():
    guard, now = started(), exam(1, language=0.2)
    (harm,) = guard.examine(now)
    guard.decide(harm, now, scores(0.6, 1), can_freeze=True)
    better, worse = exam(2, language=0.25), exam(2, language=0.15)
    assert guard.is_recovering(guard.examine(better)[0], better)
    assert not guard.is_recovering(guard.examine(worse)[0], worse)
    assert guard.examine(exam(3)) == [] and guard.acted_at == {}, "recovered"


@pytest.mark.parametrize(("against", "found"), [("mean", 1), ("start", 0)])
def test_a_skill_is_held_against_its_mean_or_its_first_examination(against, found):
    guard = started(against=against)
    assert guard.examine(exam(1, language=0.95)) == guard.examine(exam(1, language=0.95)) == []
    assert len(guard.examine(exam(2, language=0.6))) == found


def test_a_resumed_guard_decides_as_the_unbroken_one():
    guard = started()
    guard.examine(exam(1, language=0.8))
    now = exam(2, language=0.1)
    guard.decide(guard.examine(now)[0], now, scores(0.7, 1), can_freeze=True)
    resumed = Guard(GuardConfig())
    resumed.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    later = exam(3, language=0.05)
    (one,), (other,) = guard.examine(later), resumed.examine(later)
    assert one == other and guard.is_recovering(one, later) == resumed.is_recovering(other, later)
    events = [each.decide(one, later, scores(0.7, 1), can_freeze=True) for each in (guard, resumed)]
    assert events[0] == events[1] and events[0].action == "roll_back"
    assert "of turn 1 again" in events[0].text
    assert json.loads(json.dumps(dataclasses.asdict(events[0])))["action"] == "roll_back"


def test_scores_that_are_not_known_count_nowhere():
    assert known_mean([1.0, None, 0.0]) == 0.5 and np.isnan(known_mean([None]))
    guard = Guard(GuardConfig())
    guard.examine(Exam(0, {"language": [None] * N}))
    assert guard.examine(Exam(1, {"language": [0.0] * N})) == []
