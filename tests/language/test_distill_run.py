"""Distillation and its control with an engine, a teacher and a learner that are plain objects: order, store, kills."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_lab.config.load import load_config
from rl_lab.drivers.distill import DistillRun, ImitateRun, ImitateState
from rl_lab.files import read_json_lines
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import StageConfig, StageContext
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.types import TopScores, all_completions, num_tokens
from rl_lab.rollouts.teacher import LOGPROBS, TOKENS, TeacherEngines
from rl_lab.stages.kinds import KINDS
from rl_lab.terminal import ProgressBars
from rl_lab.training.state import RunState
from tests.language.builders import FakeEngines, FakeLearner, Killed, make_item

CONFIG = """
name: distillation
stages: [questions, cold_start, teacher, distill, imitate]
engine: {prompts_per_call: 3}
distill: {steps: 6, warmup: 0, batch_size: 4, num_generations: 2, max_completion_length: 16, examine_every: 2}
imitate: {steps: 6, warmup: 0, batch_size: 3, examine_every: 2}
checkpoint_every: 2
wandb: disabled
"""
TOP_K = 3


class FakeTeacher(TeacherEngines):
    """Says tokens and log-probabilities that follow from the answer."""

    def __init__(self) -> None:
        self.top_k, self.asked = TOP_K, 0

    def _read(self, groups: Any, check_stop: Any) -> Any:
        for answer in all_completions(groups):
            self.asked += 1
            draw = np.random.default_rng([*answer.tokens])
            tokens = draw.integers(0, 100, (len(answer.tokens), TOP_K), dtype=np.int32)
            yield TopScores(tokens, -draw.random((len(answer.tokens), TOP_K), dtype=np.float32))


class FakeStage:
    """A run of a stage in a folder: started, killed, resumed."""

    def __init__(self, path: Path, kind: str, inputs: dict[str, Path], policy: Path, *overrides: str) -> None:
        path.mkdir(parents=True)
        self.path, self.kind, self.inputs, self.policy, self.overrides = path, kind, inputs, policy, overrides
        self.out, self.scratch = path / "work" / "out", path / "work" / "scratch"
        self.kill_at: int | None = None
        self.teacher: FakeTeacher | None = None

    def start(self, **learner: Any) -> FakeStage:
        """Run to the end, from the last state if there is one, by a learner with these attributes."""
        context = self._context()
        try:
            items = [make_item(number) for number in [*range(24), *range(1000, 1005)]]
            self.engines = FakeEngines(self.policy, items)
            run = self._distill if self.kind == "distill" else self._imitate
            run(context, learner)
        finally:
            context._folder.close()
        return self

    def _learner(self, state: Path | None, attributes: dict[str, Any]) -> Any:
        self.learner = FakeLearner(state)
        for name, value in attributes.items():
            setattr(self.learner, name, value)
        return self.learner

    def _distill(self, context: StageContext, attributes: dict[str, Any]) -> None:
        state = RunState(context.out, context.scratch, context.say)
        learner = self._learner(state.learner_state, attributes)
        DistillRun(context, self.policy, self.engines, learner, state, self.teacher).run()  # type: ignore[arg-type]

    def _imitate(self, context: StageContext, attributes: dict[str, Any]) -> None:
        state = ImitateState(context.out, context.scratch, context.say)
        learner = self._learner(state.learner_state, attributes)
        ImitateRun(context, self.policy, self.engines, learner, state).run()  # type: ignore[arg-type]

    def _context(self) -> StageContext:
        path = self.path.parent / "distillation.yaml"
        path.write_text(CONFIG)
        config = load_config(path, self.overrides)
        for folder in (self.out, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(self.path)
        folder.keep_metrics(lambda line: False)
        return StageContext(
            node=Node(self.kind, KINDS[self.kind], {"replicate": 1}, method=self.kind, replicate=1),
            config=StageConfig(config, KINDS[self.kind]),
            inputs=self.inputs,
            out=self.out,
            scratch=self.scratch,
            seed=0,
            _folder=folder,
            _bars=ProgressBars(),
            _stop=threading.Event(),
            _track=self._track,
        )

    def _track(self, line: dict[str, Any]) -> None:
        if line["step"] == self.kill_at:
            self.kill_at = None
            raise Killed

    def metrics(self) -> list[dict[str, Any]]:
        """Lines without wall times."""
        lines = read_json_lines(self.out / "metrics.jsonl")
        return [{k: v for k, v in line.items() if not k.startswith(("time", "seconds/", "idle/"))} for line in lines]

    def outcome(self) -> dict[str, Any]:
        """What it leaves."""
        held_out, model = read_json_lines(self.out / "held_out.jsonl"), (self.out / "model").read_text()
        rollouts = RolloutStore(self.out).read() if self.kind == "distill" else []
        return {"metrics": self.metrics(), "held_out": held_out, "model": model, "rollouts": rollouts}


@pytest.fixture
def distill(tmp_path, questions, policy):
    def make(name: str, *overrides: str, teacher: FakeTeacher | None = None) -> FakeStage:
        stage = FakeStage(tmp_path / name, "distill", {"questions": questions}, policy, *overrides)
        stage.teacher = teacher
        return stage

    return make


@pytest.fixture
def imitate(tmp_path, questions, policy, distill):
    """The control on traces that a run of distillation stored: their writer does not matter here."""
    traces = distill("traces").start().out

    def make(name: str, *overrides: str) -> FakeStage:
        return FakeStage(tmp_path / name, "imitate", {"questions": questions, "traces": traces}, policy, *overrides)

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
        run.kill_at = step
        with pytest.raises(Killed):
            run.start()
        with pytest.raises(Killed):
            run.start(die_after="save")
    assert run.start().outcome() == unbroken


def test_a_teacher_is_not_asked_again_for_answers_from_before_the_kill(distill):
    teacher = FakeTeacher()
    run = distill("run", teacher=teacher)
    run.kill_at = 3
    with pytest.raises(Killed):
        run.start()
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
        run.kill_at = step
        with pytest.raises(Killed):
            run.start()
        with pytest.raises(Killed):
            run.start(die_after="save")
    assert run.start().outcome() == unbroken
