"""The driver of GRPO with an engine and a learner that are plain objects: order, refills, staleness, kills."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rl_lab.common.files import read_json_lines
from rl_lab.curriculum.edits import give_edits
from rl_lab.curriculum.store import connect
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.types import all_completions, filled
from tests.support.engines import FakeEngines
from tests.support.pools import content
from tests.support.questions import make_item
from tests.support.rollouts import advantages_of
from tests.support.stage_runs import FakeRun


@pytest.fixture
def make(tmp_path, questions, policy):
    """Runs by name, with overrides."""
    return lambda name, *overrides, **options: FakeRun(tmp_path / name, questions, policy, *overrides, **options)


def versions(run: FakeRun) -> dict[int, set[int]]:
    """Weight versions of the first round of every step."""
    rows = RolloutStore(run.out).read()
    return {
        step: {row["weight_version"] for row in rows if row["step"] == step and row["group"] < 4}
        for step in {row["step"] for row in rows}
    }


def pin(run: FakeRun, *numbers: int) -> None:
    with closing(connect(run.out / "pool.sqlite")) as db:
        give_edits(db, "pin", numbers)


def pinned_at(run: FakeRun) -> dict[int, list[int]]:
    """Items taken because they were pinned, by step."""
    with closing(connect(run.out / "pool.sqlite")) as db:
        rows = db.execute("SELECT step, number FROM selections WHERE reason = 'pinned' ORDER BY step, number")
        found: dict[int, list[int]] = {}
        for step, number in rows:
            found.setdefault(step, []).append(number)
        return found


def test_a_run_learns_from_every_step_and_leaves_pool_rollouts_examinations_and_model(make):
    run = make("run").start()
    lines = run.metrics()
    assert [line["step"] for line in lines] == list(range(7))
    assert [line["weight_version"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in read_json_lines(run.out / "held_out.jsonl")] == [0, 2, 4, 6]
    assert [("held_out/reward" in line) for line in lines] == [True, False, True, False, True, False, True]
    assert RolloutStore(run.out).steps() == [1, 2, 3, 4, 5, 6]
    assert (run.out / "model").exists() and not list(run.out.glob("pool.sqlite-*"))
    assert sorted(path.name for path in (run.out / "checkpoints").iterdir()) == ["step-0", "step-2", "step-4", "step-6"]
    assert sorted(path.name for path in run.run.context.scratch.iterdir()) == ["step-4", "step-6"]


def test_the_counts_of_a_line_are_those_of_the_rollouts(make):
    run = make("run").start()
    rows = RolloutStore(run.out).read()
    total = 0
    for line in run.metrics()[1:]:
        found = [row for row in rows if row["step"] == line["step"]]
        total += sum(len(row["tokens"]) for row in found)
        assert line["rollouts/groups"] == len({row["group"] for row in found}) == 4 + line["rollouts/refilled"]
        assert line["rollouts/tokens_total"] == total
        assert line["reward/mean"] == pytest.approx(np.mean([row["reward"] for row in found]))
        assert sum(value for name, value in line.items() if name.startswith("pool/")) == 24
        assert line["reward_masked"] == 0 and line["rollouts/truncated"] == 0


def test_groups_without_signal_are_replaced_until_the_batch_is_full_or_the_refills_are_used_up(make):
    run = make("run", "rl.max_refills=2").start()
    for line, groups in zip(run.metrics()[1:], run.learner.learned, strict=True):
        rows = [row for row in RolloutStore(run.out).read(steps=[line["step"]])]
        spread = [
            len({row["reward"] for row in rows if row["group"] == group}) > 1 for group in {r["group"] for r in rows}
        ]
        assert len(groups) == min(sum(spread), 4)
        assert all(len(set(row)) > 1 for row in advantages_of(groups))
    refilled = [line["rollouts/refilled"] for line in run.metrics()[1:]]
    assert max(refilled) > 4 - 1, "some step needed both refills"
    rounds = content(run.out / "pool.sqlite")["steps"]
    assert {row[1] for row in rounds} == {0, 1, 2}


def test_a_scheme_that_replaces_nothing_learns_from_all_groups(make):
    run = make("run", "curriculum.scheme=uniform", "rl.steps=3").start()
    assert all(line["rollouts/refilled"] == 0 for line in run.metrics()[1:])
    assert [len(groups) for groups in run.learner.learned] == [4, 4, 4]
    rows = [row for groups in run.learner.learned for row in advantages_of(groups)]
    assert all(not any(row) for row in rows if row[0] == row[1] == 0)


def test_prompts_are_given_to_engines_in_calls_of_the_configured_size(make):
    run = make("run", "rl.steps=1", "curriculum.scheme=uniform").start()
    assert run.engines.units == [5, 3, 1], "an examination of 5 in calls of 12, then a batch of 4 in calls of 3"


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_the_answers_of_a_step_are_by_weights_that_are_the_staleness_behind(make, staleness):
    run = make("run", f"rl.staleness={staleness}").start()
    assert versions(run) == {step: {1 + max(0, step - 1 - staleness)} for step in range(1, 7)}
    assert {row[0] for row in content(run.out / "pool.sqlite")["steps"]} == set(range(1, 7)), "nothing beyond the end"
    first = [line["rollouts/staleness"] for line in run.metrics()[1:] if not line["rollouts/refilled"]]
    assert all(value <= staleness for value in first)


def test_a_batch_whose_rewards_all_failed_moves_no_weights(make, monkeypatch):
    from rl_lab.rollouts import rollouter

    score = rollouter.score

    def failing(rewards, groups, **options):
        groups, first = score(rewards, groups, **options)
        if not failing.left or groups[0].item.seed >= 1000:  # of an examination
            return groups, first
        failing.left -= 1
        count = len(all_completions(groups))
        return filled(groups, reward=[None] * count, failures=[("judge/time-out",)] * count), {}

    failing.left = 1
    monkeypatch.setattr(rollouter, "score", failing)
    run = make("run", "curriculum.scheme=uniform", "rl.steps=2")
    run.killed(1)
    before = run.metrics()[1]
    run.start()
    assert run.metrics()[1] == before, "failures come from the store"
    line = run.metrics()[1]
    assert line["weight_version"] == 1 and "loss" not in line and "reward/mean" not in line
    assert line["reward_masked"] == 1 and line["reward_failures/judge/time-out"] == 16
    assert run.metrics()[2]["weight_version"] == 2
    assert all(row["reward"] is None and row["advantage"] == 0 for row in RolloutStore(run.out).read(steps=[1]))


def test_a_mismatch_above_the_limit_stops_the_run_with_its_line(make):
    run = make("run", "rl.mismatch_limit=0.05")
    with pytest.raises(RuntimeError, match=r"step 1: log-probabilities .* differ by 0.06 .* rl.mismatch_limit = 0.05"):
        run.start(mismatch=0.06)
    assert run.metrics()[-1]["mismatch/newest"] == 0.06


def test_a_mismatch_that_is_no_number_stops_the_run(make):
    with pytest.raises(RuntimeError, match="differ by nan"):
        make("run").start(mismatch=float("nan"))


@pytest.mark.parametrize("scheme", ["uniform", "frontier"])
@pytest.mark.parametrize(("rate", "reason"), [(1.0, "all answers are right"), (0.0, "all answers are wrong")])
def test_a_run_that_cannot_learn_says_so_once_while_it_runs(make, capsys, scheme, rate, reason):
    run = make("run", f"curriculum.scheme={scheme}", "rl.steps=12", rate=lambda item: rate)
    run.killed(12)
    (alarm,) = [line for line in run.metrics() if "alarm" in line]
    assert alarm["step"] == 10 and alarm["alarm"].startswith(f"nothing learned: {reason}")
    assert capsys.readouterr().err.count("nothing learned") == 1
    assert [line for line in run.start().metrics() if "alarm" in line] == [alarm]


def test_a_short_run_that_cannot_learn_says_so_in_its_last_step_and_one_that_learns_never(make):
    (alarm,) = [line for line in make("short", rate=lambda item: 1.0).start().metrics() if "alarm" in line]
    assert alarm["step"] == 6
    assert not [line for line in make("learns", "rl.steps=14").start().metrics() if "alarm" in line]


def test_a_run_whose_answers_came_to_agree_says_so_at_its_end(make, monkeypatch):
    monkeypatch.setattr("rl_lab.training.online.group_spread", lambda rewards, left=[0.4] * 9: (left or [0.01]).pop())
    run = make("run", "rl.steps=12").start()
    assert [line["alarm"].split(":")[0] for line in run.metrics() if "alarm" in line] == ["signal lost"]


def test_a_loss_that_is_no_number_stops_the_run(make):
    with pytest.raises(RuntimeError, match="not finite"):
        make("run").start(error="loss is not finite; the batch is in bad_batch.pt")


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_killed_and_resumed_runs_leave_what_the_unbroken_one_leaves(make, staleness):
    setting = f"rl.staleness={staleness}"
    unbroken = make("unbroken", setting).start().outcome()
    run = make("killed", setting)
    for step in (1, 3, 5):
        run.killed(step)
        for death in ({"die_at": step + 1}, {"die_after": "save"}):
            run.killed(**death)
    run.killed(die_after="finish")
    found = run.start().outcome()
    for name in unbroken:
        assert found[name] == unbroken[name], name


def test_a_stage_that_is_called_again_after_its_end_leaves_the_same(make):
    run = make("run").start()
    before = run.outcome()
    assert run.start().outcome() == before and run.engines.asked == []


def test_what_was_answered_before_the_kill_is_not_asked_again(make):
    run = make("run")
    run.killed(3)
    run.start()
    train = [item for _, item in run.engines.asked if int(item.split("-")[1]) < 1000]
    later = {row["item"] for row in RolloutStore(run.out).read(steps=[4, 5, 6])}
    assert set(train) == later


def test_answers_that_were_lost_are_asked_again_with_the_weights_of_then(make):
    run = make("run", "rl.staleness=1")
    run.killed(3)
    RolloutStore(run.out).forget_after(2)
    run.start()
    assert run.engines.asked[0][0] == 2, "step 3 was selected before the batch of step 2 was learned"
    assert run.outcome() == make("unbroken", "rl.staleness=1").start().outcome()


def test_a_pin_given_during_the_run_takes_effect_at_the_next_selection(make):
    run = make("run")
    track, given = run._track, []

    def pin_at_2(line):
        if line["step"] == 2 and not given:
            given.append(pin(run, 5))
        track(line)

    run._track = pin_at_2
    run.start()
    assert set(pinned_at(run)) == {3, 4, 5, 6} and pinned_at(run)[3] == [5]


@pytest.mark.parametrize("killed_after", [1, 3])
def test_pins_outlive_a_kill_also_before_the_first_checkpoint(make, killed_after):
    run = make("run")
    run.killed(killed_after)
    pin(run, 5, 6)
    run.start()
    first = min(pinned_at(run))
    assert first <= killed_after + 1 and pinned_at(run)[first] == [5, 6]
    rows = RolloutStore(run.out).read(steps=[first])
    assert {row["item"] for row in rows if row["group"] < 2} == {"item-5", "item-6"}, "other items' answers were stored"
    with closing(connect(run.out / "pool.sqlite")) as db:
        query = "SELECT number, mean FROM observations WHERE step = ? ORDER BY rowid"
        seen = {f"item-{number}": mean for number, mean in db.execute(query, (first,))}
    for item, mean in seen.items():
        assert mean == pytest.approx(np.mean([row["reward"] for row in rows if row["item"] == item]))


@pytest.mark.parametrize("staleness", [0, 1])
def test_stage_mode_probes_without_learning_and_runs_to_its_end(make, staleness):
    stage = "curriculum={batch_size: 4, mode: stage, stage_candidates: 10, stage_size: 6, stage_epochs: 2}"
    run = make("run", stage, f"rl.staleness={staleness}").start()
    steps = content(run.out / "pool.sqlite")["steps"]
    trains = {row[0]: bool(row[3]) for row in steps}
    lines = {line["step"]: line for line in run.metrics()[1:]}
    assert sum("loss" in line for line in lines.values()) == run.learner.batches == 6
    assert any(not value for value in trains.values())
    assert all(
        "loss" not in line and line["rollouts/refilled"] == 0 for step, line in lines.items() if not trains[step]
    )
    killed = make("killed", stage, f"rl.staleness={staleness}")
    killed.killed(5)
    assert killed.start().outcome() == run.outcome()


def test_a_reader_of_the_pool_does_not_end_the_run(make):
    run = make("run", "rl.steps=1")
    readers = []
    run._track = lambda line: readers.append(open_reader(run.out / "pool.sqlite")) if line["step"] == 1 else None
    run.start()
    assert len(readers) == 1


def open_reader(path: Path):
    import sqlite3

    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    cursor = db.execute("SELECT * FROM items")
    cursor.fetchone()
    return db, cursor


def test_items_of_the_pool_show_their_question(make):
    run = make("run", "rl.steps=1").start()
    with closing(connect(run.out / "pool.sqlite")) as db:
        rows = dict(db.execute("SELECT id, content FROM items"))
    assert make_item(3).prompt in rows["item-3"] and "solution" not in rows["item-3"]


def test_answers_that_no_longer_end_raise_one_alarm_also_where_the_run_was_killed(make, capsys, monkeypatch):
    answer = FakeEngines._answer

    def unfinished(engines, item, prompt, draw, version):
        return replace(answer(engines, item, prompt, draw, version), finished=version < 3)

    monkeypatch.setattr(FakeEngines, "_answer", unfinished)
    unbroken = make("unbroken", "rl.steps=14").start()
    alarms = [line for line in unbroken.metrics() if "alarm" in line]
    assert [line["step"] for line in alarms] == [11] and alarms[0]["alarm"].startswith("length collapse: 9")
    assert capsys.readouterr().err.count("length collapse") == 1
    broken = make("broken", "rl.steps=14")
    for step in (10, 13):
        broken.killed(step)
    assert broken.start().metrics() == unbroken.metrics()


def test_answers_that_end_raise_no_alarm(make):
    assert not [line for line in make("run", "rl.steps=12").start().metrics() if "alarm" in line]
