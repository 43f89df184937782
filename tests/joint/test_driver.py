"""The driver of joint training on fakes: order, budgets, kills, the guard at work, and what is counted."""

import json
from collections import Counter

import numpy as np
import pytest

from rl_lab.common.files import read_json_lines
from rl_lab.records.rollouts import RolloutStore
from rl_lab.training.schedule import PARTS
from tests.support.learners import HELPS
from tests.support.pools import content
from tests.support.stage_runs import TURNS, FakeJoint


@pytest.fixture
def make(tmp_path, questions, language_policy):
    """Runs by name, with overrides."""
    return lambda name, *overrides, **options: FakeJoint(
        tmp_path / name, questions, language_policy, *overrides, **options
    )


def test_turns_follow_the_schedule_and_one_counter_numbers_all_weights(make):
    run = make("run").start()
    lines = [line for line in run.metrics() if "alarm" not in line]
    assert [line["step"] for line in lines] == list(range(TURNS + 1))
    assert [line["part"] for line in lines[1:]] == [
        *("rpro", "grpo", "rpro", "grpo", "rpro"),
        *("rpro", "grpo", "rpro", "grpo", "rpro"),
    ]
    assert [line["weight_version"] for line in lines] == list(range(1, TURNS + 2))
    assert lines[-1]["turns/grpo"] == 4 and lines[-1]["turns/rpro"] == 6 and lines[-1]["rpro/steps"] == 12
    assert {"grpo/loss", "grpo/reward/mean", "drift/vlm"} <= set(lines[2])
    assert not any(name.startswith(("grpo/idle", "grpo/seconds")) for name in lines[2])
    assert [line["turn"] for line in read_json_lines(run.out / "exams.jsonl")] == [0, 3, 6, 9, 10]
    assert RolloutStore(run.out).steps() == [1, 2, 3, 4]


def test_engines_answer_with_the_newest_weights_at_the_end_of_the_last_batch(make):
    run = make("run").start()
    rows = RolloutStore(run.out).read()
    first = {row["step"]: row["weight_version"] for row in rows if row["group"] < 4}
    assert first == {1: 1, 2: 3, 3: 5, 4: 8}, "asked after turns 0, 2, 4 and 7"


@pytest.mark.parametrize(("ahead", "version"), [(0, 6), (1, 4), (2, 2)])
def test_pairs_are_collected_with_the_weights_of_a_fixed_turn(make, ahead, version):
    run = make("run", f"joint.collect_ahead={ahead}").start()
    found = [json.loads((run.out / "pairs" / f"round-{k}" / "collection.json").read_text()) for k in (1, 2)]
    assert [row["weight_version"] for row in found] == [1, version]
    assert {seen for seen, _ in run.simulators.collected} == {1, version}


@pytest.mark.parametrize(("staleness", "turns"), [(0, (0, 2, 3, 6, 8, TURNS)), (1, (1, 5))])
def test_a_run_killed_after_any_turn_ends_as_the_unbroken_one(make, staleness, turns):
    options = (f"rl.staleness={staleness}",)
    whole = make("whole", *options).start().outcome()
    for turn in turns:
        run = make(f"killed-{turn}", *options)
        run.killed(turn)
        if turn < TURNS:
            run.killed(die_at=turn + 1)  # and once more, in the learner, at its next turn
        assert run.start().outcome() == whole, f"killed after turn {turn}"


def test_work_that_was_done_before_a_kill_is_not_done_again(make):
    run = make("run")
    run.killed(5)
    asked, collected = len(run.engines.asked), len(run.simulators.collected)
    assert asked and collected
    stored = RolloutStore(run.out).steps()
    run.start()
    assert 1 in stored and all(row["step"] in (1, 2, 3, 4) for row in RolloutStore(run.out).read())
    assert not [seeds for version, seeds in run.simulators.collected if version == 1], "round 1 was whole"


@pytest.mark.parametrize("seed", range(3))
def test_in_asynchronous_mode_nothing_is_lost_or_counted_twice(make, seed):
    run = make("run", "joint.mode=asynchronous", "joint.slack=2")
    run.delays = np.random.default_rng(seed)
    run.killed(4 + seed)
    run.start()
    lines = [line for line in run.metrics() if line["step"] and "alarm" not in line]
    assert [line["step"] for line in lines] == list(range(1, TURNS + 1))
    assert Counter(line["part"] for line in lines) == {"grpo": 4, "rpro": 6}
    assert lines[-1]["rpro/steps" if lines[-1]["part"] == "rpro" else "turns/rpro"] in (12, 6)
    steps = [row[0] for row in content(run.out / "pool.sqlite")["steps"] if row[1] == 0]
    assert sorted(steps) == [1, 2, 3, 4] == RolloutStore(run.out).steps(), "every batch is observed once"
    versions = [line["weight_version"] for line in lines]
    assert versions == list(range(2, TURNS + 2)) and (run.out / "model").exists()


def test_in_asynchronous_mode_no_part_gets_further_ahead_than_the_slack(make):
    run = make("run", "joint.mode=asynchronous", "joint.slack=1", "joint.priority=rpro", "rl.steps=6")
    run.delays = np.random.default_rng(0)
    run.start()
    done = dict.fromkeys(PARTS, 0)
    for line in (line for line in run.metrics() if line["step"]):
        part = line["part"]
        if len(run.run.schedule.open_parts(done)) == 2:
            assert run.run.schedule.ahead(part, done) < 1
        done[part] += 1


def effects(**changes):
    return {part: {**HELPS[part], **changes.get(part, {})} for part in PARTS}


def test_a_planted_harm_is_caught_undone_and_told(make):
    overrides = ("joint.guard.actions=[roll_back]", "joint.guard.lower_by=0.01")
    run = make("run", *overrides, effects=effects(rpro={"language": -0.3})).start()
    (event,) = read_json_lines(run.out / "guard.jsonl")
    assert (event["turn"], event["skill"], event["objective"], event["action"]) == (3, "language", "rpro", "roll_back")
    assert event["bound"] < -0.1 and event["given_back"] > 0.3
    assert [line["alarm"] for line in run.metrics() if "alarm" in line] == [event["text"]]
    exams = read_json_lines(run.out / "exams.jsonl")
    language = [np.mean(exam["scores"]["language"]) for exam in exams]
    assert language[1] < language[0] - 0.3 and all(value > language[0] - 0.1 for value in language[2:])
    versions = [line["weight_version"] for line in run.metrics() if "alarm" not in line]
    assert versions[-1] == TURNS + 2, "the roll-back is a version of its own"


def test_the_same_harm_is_lowered_first_if_that_is_configured(make):
    run = make("run", "joint.guard.actions=[lower, roll_back]", effects=effects(rpro={"language": -0.3})).start()
    found = [event["action"] for event in read_json_lines(run.out / "guard.jsonl")]
    assert found[:2] == ["lower", "roll_back"]


def test_a_harmful_objective_that_has_nothing_else_to_train_is_stopped(make):
    run = make("run", "joint.guard.actions=[freeze]", effects=effects(grpo={"actions": -0.5})).start()
    event = read_json_lines(run.out / "guard.jsonl")[0]
    assert (event["skill"], event["objective"], event["action"]) == ("actions", "grpo", "stop")
    parts = [line["part"] for line in run.metrics() if line["step"] > event["turn"] and "alarm" not in line]
    assert parts and set(parts) == {"rpro"}


def test_an_objective_that_hurts_its_own_skill_is_not_the_guards_business(make):
    run = make("run", effects=effects(grpo={"language": -0.5})).start()
    found = read_json_lines(run.out / "guard.jsonl")
    assert found and {(event["objective"], event["action"]) for event in found} == {("grpo", "none")}


def test_a_clean_run_is_not_touched(make):
    run = make("run").start()
    assert not (run.out / "guard.jsonl").exists() or not read_json_lines(run.out / "guard.jsonl")
    assert set(run.learner.rate.values()) == {1.0} and not any("alarm" in line for line in run.metrics())


def test_a_guarded_run_killed_after_any_turn_ends_as_the_unbroken_one(make):
    options = ("joint.guard.actions=[lower, roll_back]",)
    harm = effects(rpro={"language": -0.3})
    whole = make("whole", *options, effects=harm).start().outcome()
    for turn in (2, 3, 4, 6, 7):
        run = make(f"killed-{turn}", *options, effects=harm)
        run.killed(turn)
        assert run.start().outcome() == whole, f"killed after turn {turn}"


def test_engines_that_disagree_stop_a_run_but_answers_from_before_a_turn_of_rpro_may_differ(make):
    make("stale").start(mismatch=5.0)
    with pytest.raises(RuntimeError, match="differ by 5 on average"):
        make("fresh", "joint.lead=1").start(mismatch=5.0)


def test_an_objective_that_cannot_learn_is_named_and_the_other_is_not(make):
    run = make("run", "joint.guard=null").start(grad_norm=0.0)
    alarms = [line["alarm"].split(":")[:2] for line in run.metrics() if "alarm" in line]
    assert alarms == [["grpo", " nothing learned"], ["rpro", " nothing learned"]]
    assert not [line for line in make("learns").start().metrics() if "alarm" in line]


def test_a_sequence_collects_its_pairs_with_what_came_before(make):
    run = make("run", arm="sequence").start()
    assert [line["part"] for line in run.metrics() if line["step"]] == ["grpo"] * 4 + ["rpro"] * 6
    assert json.loads((run.out / "pairs" / "round-1" / "collection.json").read_text())["weight_version"] == 5
    assert not (run.out / "guard.jsonl").exists() or not read_json_lines(run.out / "guard.jsonl")


def test_demonstrations_in_rpros_turns_collect_nothing_and_outlive_a_kill(make):
    options = ("joint.method=continued_sft",)
    whole = make("whole", *options, arm="sequence").start()
    assert [line["part"] for line in whole.metrics() if line["step"]] == ["grpo"] * 4 + ["rpro"] * 6
    assert not (whole.out / "pairs").exists() and not whole.simulators.collected
    killed = make("killed", *options, arm="sequence")
    killed.killed(6)
    assert killed.start().outcome() == whole.outcome()


@pytest.mark.parametrize(("arm", "part", "turns"), [("grpo_alone", "grpo", 4), ("rpro_alone", "rpro", 6)])
def test_an_isolated_part_does_its_own_turns_and_both_skills_are_examined(make, arm, part, turns):
    run = make("run", arm=arm).start()
    assert [line["part"] for line in run.metrics() if line["step"]] == [part] * turns
    assert (run.out / "pairs").exists() == (part == "rpro") and bool(RolloutStore(run.out).steps()) == (part == "grpo")
    exams = read_json_lines(run.out / "exams.jsonl")
    assert exams[0]["turn"] == 0 and set(exams[-1]["scores"]) == {"language", "actions"}
