"""Distillation and its control with an engine, a teacher and a learner that are plain objects: order, store, kills."""

import numpy as np
import pytest

from rl_lab.common.files import read_json_lines
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.types import all_completions, num_tokens
from rl_lab.rollouts.teacher import LOGPROBS, TOKENS
from tests.support.engines import FakeTeacher
from tests.support.stage_runs import FakeDistillation

TOP_K = 3


@pytest.fixture
def distill(tmp_path, questions, policy):
    def make(name: str, *overrides: str, teacher: FakeTeacher | None = None) -> FakeDistillation:
        stage = FakeDistillation(tmp_path / name, "distill", {"questions": questions}, policy, *overrides)
        stage.teacher = teacher
        return stage

    return make


@pytest.fixture
def imitate(tmp_path, questions, policy, distill):
    """The control on traces that a run of distillation stored: their writer does not matter here."""
    traces = distill("traces").start().out

    def make(name: str, *overrides: str) -> FakeDistillation:
        return FakeDistillation(
            tmp_path / name, "imitate", {"questions": questions, "traces": traces}, policy, *overrides
        )

    return make


def test_every_step_learns_from_all_answers_and_the_run_is_examined_along_the_way(distill):
    run = distill("run").start()
    assert [[group.size for group in groups] for groups in run.learner.learned] == [[2] * 4] * 6
    assert all(answer.teacher is None for groups in run.learner.learned for answer in all_completions(groups))
    assert [line["step"] for line in read_json_lines(run.out / "held_out.jsonl")] == [0, 2, 4, 6]
    lines = run.metrics()
    assert all(line["rollouts/refilled"] == 0 and line["rollouts/groups"] == 4 for line in lines[1:])
    assert lines[-1]["rollouts/tokens_total"] == sum(len(row["tokens"]) for row in RolloutStore(run.out).read())


def test_questions_are_drawn_evenly_whatever_their_rewards(distill):
    run = distill("run", "distill.steps=6", "distill.batch_size=4").start()
    counts = np.unique([row["item"] for row in RolloutStore(run.out).read() if row["sample"] == 0], return_counts=True)[
        1
    ]
    assert counts.sum() == 24 and len(counts) > 12


def test_what_a_teacher_says_is_stored_and_reaches_the_learner_unchanged(distill):
    run = distill("run", teacher=FakeTeacher()).start()
    rows = RolloutStore(run.out).read(steps=[1])
    groups = run.learner.learned[0]
    assert [group.size for group in groups] == [2] * 4
    for row, scores in zip(rows, [answer.teacher for answer in all_completions(groups)], strict=True):
        assert scores.tokens.shape == scores.logprobs.shape == (len(row["tokens"]), TOP_K)
        draw = np.random.default_rng([*row["tokens"]])
        np.testing.assert_array_equal(scores.tokens, draw.integers(0, 100, scores.tokens.shape, dtype=np.int32))
        np.testing.assert_array_equal(scores.logprobs, -draw.random(scores.logprobs.shape, dtype=np.float32))
        assert row[TOKENS] == scores.tokens.ravel().tolist() and len(row[LOGPROBS]) == scores.logprobs.size


@pytest.mark.parametrize("staleness", [0, 2])
def test_killed_and_resumed_distillation_leaves_what_the_unbroken_one_leaves(distill, staleness):
    setting = f"distill.staleness={staleness}"
    unbroken = distill("unbroken", setting, teacher=FakeTeacher()).start().outcome()
    run = distill("killed", setting, teacher=FakeTeacher())
    for step in (1, 4):
        run.killed(step)
        run.killed(die_after="save")
    assert run.start().outcome() == unbroken


def test_a_teacher_is_not_asked_again_for_answers_from_before_the_kill(distill):
    teacher = FakeTeacher()
    run = distill("run", teacher=teacher)
    run.killed(3)
    run.start()
    assert teacher.asked == 6 * 4 * 2


def test_a_replicate_asks_other_questions(distill):
    items = [
        {row["item"] for row in RolloutStore(distill(f"run{r}", f"distill.replicate={r}").start().out).read(steps=[1])}
        for r in (1, 2)
    ]
    assert items[0] != items[1]


def test_the_control_learns_the_stored_traces_in_passes_and_counts_tokens(imitate, questions):
    run = imitate("control").start()
    assert [len(groups) for groups in run.learner.learned] == [3] * 6
    stored = RolloutStore(run.inputs["traces"]).read()
    items = ItemFile(questions / "train.arrow").rows_by_id()
    known = {(items[row["item"]], tuple(row["tokens"])) for row in stored}
    tokens = 0
    for groups in run.learner.learned:
        tokens += num_tokens(groups)
        assert {answer.tokens for answer in all_completions(groups)} <= {text for _, text in known}
        for group in groups:
            (answer,) = group.completions
            assert len(answer.prompt_tokens) > len(group.prompt.tokens), "a picture is written out as rows of patches"
    assert run.metrics()[-1]["text/tokens_total"] == tokens
    assert [line["tokens"] for line in read_json_lines(run.out / "held_out.jsonl")][-1] == tokens


def test_a_killed_and_resumed_control_leaves_what_the_unbroken_one_leaves(imitate):
    unbroken = imitate("unbroken").start().outcome()
    run = imitate("killed")
    for step in (1, 3, 5):
        run.killed(step)
        run.killed(die_after="save")
    assert run.start().outcome() == unbroken
