"""A reward model as nodes of a run: what it needs, what it shares, and what its content decides."""

from pathlib import Path

import pytest

from rl_lab.common.errors import UserError
from rl_lab.rollouts.reward_model import MODEL_FILE
from rl_lab.stages import preflight
from tests.support.experiments import differing, hashes, nodes
from tests.support.pipelines import pipeline
from tests.support.refusals import refusal
from tests.trl_backend.builders import make_folder


def answers(run: Path, text: str = "an answer") -> Path:
    """A run folder with a question and an answer, as far as hashes read them."""
    for path in (run / "questions/questions/train.arrow", run / "grpo/a.1.grpo/rollouts/step-00000001.parquet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return run


def base(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_members_start_from_the_newest_model_and_meet_in_one(tmp_path):
    found = nodes(pipeline(tmp_path, "[questions, cold_start, examine, outcome_model]", "outcome.members=2"))
    assert list(found)[3:] == [
        *("outcome_model.traces", "outcome_model.labels", "outcome_model.member.1", "outcome_model.member.2"),
        *("outcome_model", "report"),
    ]
    assert found["outcome_model.traces"].inputs == {"questions": "questions", "policy": "cold_start"}
    assert found["outcome_model.member.2"].inputs == {"labels": "outcome_model.labels", "policy": "cold_start"}
    members = {f"member.{n}": f"outcome_model.member.{n}" for n in (1, 2)}
    assert found["outcome_model"].inputs == {"labels": "outcome_model.labels"} | members


def test_one_member_more_leaves_the_traces_as_they_are(tmp_path):
    stages = "[questions, cold_start, outcome_model]"
    one, two = (hashes(pipeline(tmp_path, stages, f"outcome.members={n}")) for n in (1, 2))
    assert one["outcome_model.traces"] == two["outcome_model.traces"]
    assert two["outcome_model.member.1"] != two["outcome_model.member.2"]


def test_it_is_no_model_of_the_chain(tmp_path):
    found = nodes(pipeline(tmp_path, "[questions, cold_start, outcome_model, examine, grpo]"))
    assert found["base.examine"].inputs["policy"] == "cold_start"
    assert found["grpo"].inputs["policy"] == "cold_start"


def test_answers_of_another_run_need_neither_questions_nor_engines_and_decide_by_content(tmp_path):
    where = [f"outcome.run={answers(tmp_path / 'run')}", f"model.path={base(tmp_path / 'base')}"]
    config = pipeline(tmp_path, "[outcome_model]", *where)
    assert "outcome_model.traces" not in nodes(config) and "questions" not in nodes(config)
    assert config.engine_stages == set() and config.workers_needed.rollout == 0
    before = hashes(config)
    answers(tmp_path / "elsewhere")
    moved = pipeline(tmp_path, "[outcome_model]", f"outcome.run={tmp_path / 'elsewhere'}", where[1])
    assert hashes(moved) == before
    answers(tmp_path / "run", "another answer")
    assert hashes(config)["outcome_model.labels"] != before["outcome_model.labels"]


def test_a_reward_model_decides_by_the_content_of_its_folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    rewards = f"rewards={{weights: {{learned: 1}}, models: {{learned: {{path: {model}}}}}}}"

    def found(text: str) -> dict[str, str]:
        (model / MODEL_FILE).write_text(text)
        return hashes(pipeline(tmp_path, "[questions, cold_start, grpo]", rewards))

    before, after = found("a"), found("b")
    assert {name.rpartition(".")[2] for name in differing(before, after)} == {"grpo"}


@pytest.mark.parametrize(
    "stages, overrides, said",
    [
        ("[questions, outcome_model]", (), "outcome_model needs cold_start before it, or a trained model"),
        ("[outcome_model]", (), "outcome_model needs questions before it"),
        ("[questions, cold_start, outcome_model]", ("outcome.test=0.9",), "leave some to train on"),
        ("[questions, cold_start, outcome_model]", ("workers.rollout=0",), "but outcome_model needs an engine"),
    ],
)
def test_what_is_missing_is_said(tmp_path, stages, overrides, said):
    with pytest.raises(UserError, match=said):
        pipeline(tmp_path, stages, *overrides)


def test_a_run_without_answers_is_named_before_the_start(tmp_path):
    folder = make_folder(tmp_path / "base")
    config = pipeline(tmp_path, "[outcome_model]", f"outcome.run={tmp_path}", f"model.path={folder}")
    with pytest.raises(UserError, match=r"outcome.run: .* has no stored answers with their questions"):
        preflight.check_machine(config)


@pytest.mark.parametrize(
    "variant, said",
    [
        (
            "{weights: {answr: 1.0}}",
            r"study.rewards.mine.weights.answr is the weight of no reward; did you mean answer",
        ),
        ("{weights: {learned: 1.0}, models: {learned: {path: nowhere}}}", "nowhere is no reward model"),
    ],
)
def test_a_variant_with_an_unknown_reward_is_named_before_the_start(tmp_path, monkeypatch, variant, said):
    monkeypatch.setattr(preflight, "has_vllm", lambda: True)
    study = f"study={{control: a, rewards: {{a: {{}}, mine: {variant}}}}}"
    config = pipeline(tmp_path, "[questions, cold_start, examine, grpo]", study)
    with pytest.raises(UserError, match=said):
        preflight.check_machine(config)


@pytest.mark.parametrize(
    "variant, said",
    [
        ("{point: {scale: -1}}", r"point: scale is -1.0; it must be above 0"),
        ("{count: {partial_credit: 2}}", r"count: partial_credit is 2.0; it must be at least 0 and at most 1"),
        ("{weights: {answer: -1}}", "a weight is a number >= 0"),
        ("{weights: {answer: 0}}", "weights are all 0"),
        ("{guard: {timeout_s: 0}}", "timeout_s is 0.0; it must be above 0"),
    ],
)
def test_a_constant_out_of_range_is_named_while_loading(tmp_path, variant, said):
    study = f"study={{control: a, rewards: {{a: {{}}, mine: {variant}}}}}"
    found = refusal(pipeline, tmp_path, "[questions, cold_start, examine, grpo]", study)
    assert "study.rewards.mine" in found and said in found
