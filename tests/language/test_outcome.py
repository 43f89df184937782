"""Outcome reward models: from stored answers to a reward by name."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from rewards.config import RewardConfig
from rl_lab.common.errors import UserError
from rl_lab.config.language import OutcomeConfig
from rl_lab.learner.outcome import (
    LabelledCompletions,
    OutcomePlan,
    answer_pairs,
    label_answers,
    scene_splits,
    scoring_batch,
)
from rl_lab.learner.plans import Training
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.types import all_completions
from rl_lab.rollouts.answering import failure_metrics, make_rewards, score
from rl_lab.rollouts.reward_model import MODEL_FILE, check_outcome_model, load_member, load_outcome_model
from rl_lab.stages.outcome import OutcomeLabelsKind, OutcomeModelKind
from tests.support.outcome import SETTINGS, outcome_context, train_member
from tests.support.questions import choices, make_item, write_choices
from tests.support.rollouts import answered, groups_of

RIGHT, WRONG = "<answer>A</answer>", "<answer>B</answer>"


@pytest.fixture(scope="module")
def labels(tmp_path_factory, questions) -> Path:
    """The output of the labels of a run of traces; read only."""
    folder = tmp_path_factory.mktemp("labels")
    traces = write_choices(folder / "traces")
    context = outcome_context(folder, "labels", "outcome_labels", {"traces": traces, "questions": questions})
    OutcomeLabelsKind().run(None, context)
    return context.out


@pytest.fixture(scope="module")
def model(tmp_path_factory, policy, labels) -> Path:
    """A model of two members after two steps; read only."""
    folder = tmp_path_factory.mktemp("model")
    members = {f"member.{n}": train_member(policy, labels, folder / f"m{n}", seed=n) for n in (1, 2)}
    inputs = {"labels": labels} | members
    context = outcome_context(folder, "model", "outcome_model", inputs, ["outcome.members=2"])
    OutcomeModelKind().run(None, context)
    return context.out


def test_labels_are_the_truth_and_not_what_was_paid(tmp_path, questions):
    store = [choices("item-0", 0, 1.0, RIGHT, paid=0.0), choices("item-0", 1, None, WRONG, paid=1.0)]
    store += [choices(f"item-{n}", 0, 0.0, WRONG, paid=1.0) for n in (1, 2)]
    RolloutStore(tmp_path).write(1, groups_of(store))
    answers, unknown = label_answers([tmp_path], ItemFile(questions / "train.arrow"), (0.3, 0.3), 0)
    assert dict(zip(answers.row.tolist(), answers.truth.tolist(), strict=True)) == {0: 1.0, 1: 0.0, 2: 0.0}
    assert unknown == 1
    assert Counter(answers.split.tolist()) == {0: 1, 1: 1, 2: 1}


def test_no_scene_is_in_two_splits_and_shares_are_kept():
    splits = scene_splits([f"s{n % 40}" for n in range(200)], (0.15, 0.25), seed=3)
    assert Counter(splits.values()) == {0: 24, 1: 6, 2: 10}
    assert splits == scene_splits([f"s{n}" for n in range(40)], (0.15, 0.25), seed=3)
    assert splits != scene_splits([f"s{n}" for n in range(40)], (0.15, 0.25), seed=4)
    with pytest.raises(ValueError, match="2 scenes; training, calibration and test need one each"):
        scene_splits(["a", "b"], (0.2, 0.2), 0)


def test_pairs_are_of_one_question_and_differ_in_truth_and_text():
    rows, texts = np.array([0, 0, 0, 1, 1]), ["a", "b", "a", "c", "d"]
    answers = LabelledCompletions(rows, texts, np.array([1.0, 0.2, 0.1, 0.5, 0.45]), np.zeros(5, int))
    assert answer_pairs(answers, 0.1, most=9, seed=0) == [(0, 1), (1, 2)]
    assert len(answer_pairs(answers, 0.1, most=1, seed=0)) == 1
    assert answer_pairs(answers, 0.0, most=9, seed=0)[-1] == (3, 4)


def test_what_cannot_be_labelled_is_named(tmp_path, questions):
    items = ItemFile(questions / "train.arrow")
    with pytest.raises(UserError, match="no stored answers with a true reward"):
        label_answers([tmp_path], items, (0.2, 0.2), 0)
    RolloutStore(tmp_path).write(1, groups_of([choices("elsewhere", 0, 1.0, RIGHT)]))
    with pytest.raises(UserError, match="an answer to elsewhere, which is not among the run's questions"):
        label_answers([tmp_path], items, (0.2, 0.2), 0)


def test_answers_are_scored_at_their_end_and_batching_does_not_matter(policy, labels, tmp_path):
    member = load_member(train_member(policy, labels, tmp_path / "member"))
    language, head = member.language, member.head
    item = make_item(3)
    questions = [(item.prompt, item.images)]
    batch = scoring_batch(questions, [(0, RIGHT), (0, "a much longer answer that is wrong")], language.processor)
    assert batch.completion_mask.sum(1).tolist() == [1, 1]
    assert (batch.input_ids[batch.completion_mask] == language.processor.tokenizer.eos_token_id).all()
    features = language.model.next_tokens(batch).features
    alone = language.model.next_tokens(scoring_batch(questions, [(0, RIGHT)], language.processor)).features
    assert torch.allclose(head(features)[:1], head(alone), atol=1e-5)


@pytest.mark.parametrize("learns", ["correctness", "preference"])
def test_a_killed_training_goes_on_as_the_unbroken_one(learns, policy, labels, tmp_path):
    settings = OutcomeConfig(**SETTINGS.model_dump() | {"learns": learns, "steps": 4})
    plan = OutcomePlan(policy, settings, labels / "labels.parquet", labels / "items.arrow", 5)
    unbroken, killed = Training(plan), Training(plan)
    lines = [unbroken.run_step() for _ in range(4)]
    for _ in range(2):
        killed.run_step()
    resumed = Training(plan)
    resumed.load_state_dict(killed.state_dict())
    assert [resumed.run_step() for _ in range(2)] == lines[2:]
    for training, name in ((unbroken, "a"), (resumed, "b")):
        training.finish(tmp_path / name)
    assert (tmp_path / "a/head.safetensors").read_bytes() == (tmp_path / "b/head.safetensors").read_bytes()


def test_members_differ_and_the_record_has_what_the_card_shows(model):
    record = json.loads((model / MODEL_FILE).read_text())
    assert len(record["platt"]) == 2
    assert record["test"]["answers"] > 0 < record["answers_per_second"]
    assert record["labels"]["correct"] == 0.5
    logits = load_outcome_model(model).logits([("which? /think", make_item(1).images)] * 2, [RIGHT, WRONG])
    assert logits.shape == (2, 2)
    assert not np.allclose(logits[0], logits[1])


def test_a_model_is_a_reward_by_name_and_abstains_where_members_disagree(model):
    def scored(**settings):
        values = {"weights": {"learned": 1.0}, "models": {"learned": {"path": str(model)} | settings}}
        rewards = make_rewards(RewardConfig.read(values, "rewards"))
        return score(rewards, answered([make_item(1), make_item(2)], [RIGHT, WRONG]))[0]

    plain = scored()
    assert all(0 < answer.reward < 1 for answer in all_completions(plain))
    assert all_completions(plain)[0].rewards["learned"] == all_completions(plain)[0].reward
    apart = [answer.rewards["disagreement/learned"] for answer in all_completions(plain)]
    limit = float(np.median(apart))
    careful = scored(abstain_above=limit)
    assert [answer.reward is None for answer in all_completions(careful)] == [value > limit for value in apart]
    assert failure_metrics(careful)["reward_failures/learned/abstained"] == sum(value > limit for value in apart)


def test_the_pictures_of_a_question_count(model):
    loaded = load_outcome_model(model)
    one, other = make_item(1), make_item(2)
    logits = loaded.logits([("which?", one.images), ("which?", other.images)], [RIGHT, RIGHT])
    assert not np.allclose(logits[:, 0], logits[:, 1])


def test_a_folder_that_is_no_model_is_named(tmp_path):
    values = {"weights": {"learned": 1.0}, "models": {"learned": {"path": str(tmp_path)}}}
    with pytest.raises(UserError, match=r"is no reward model: model.json is missing; train one with an outcome_model"):
        make_rewards(RewardConfig.read(values, "rewards"))
    (tmp_path / MODEL_FILE).write_text('{"kind": "success"}')
    with pytest.raises(UserError, match="of kind 'success'; answers need one of kind 'outcome'"):
        make_rewards(RewardConfig.read(values, "rewards"))


def test_answers_that_are_all_right_teach_nothing(policy, labels, tmp_path):
    settings = OutcomeConfig(**SETTINGS.model_dump() | {"threshold": 0.0})
    plan = OutcomePlan(policy, settings, labels / "labels.parquet", labels / "items.arrow", 0)
    with pytest.raises(UserError, match="so there is nothing to tell apart; lower outcome.threshold"):
        plan.build("cpu")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.json", b"[]", "expected a JSON object, found list"),
        ("model.json", b'{"kind": "outcome"}', "platt, the calibration of each member, is missing"),
        ("model.json", b'{"kind": "outcome", "platt": [{"scale": "1"}]}', "platt: 0.scale: Input should be a valid"),
        ("model.json", b'{"kind": "outcome", "platt": [{}, {}, {}]}', "member-3"),
        ("member-2/head.safetensors", bytes(50), "head.safetensors is damaged"),
        ("member-2/head.safetensors", save({"linear.bias": torch.zeros(1)}), "2 tensors missing: linear.weight"),
        ("member-1/model.safetensors", bytes(50), "model.safetensors is damaged"),
    ],
)
def test_a_damaged_model_is_refused_before_it_is_asked(model, tmp_path, file, content, said):
    folder = shutil.copytree(model, tmp_path / "damaged")
    (folder / file).unlink()
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said)):
        check_outcome_model(folder)


def test_a_head_that_is_not_finite_is_refused_by_the_name_of_its_tensor(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "damaged")
    path = folder / "member-1" / "head.safetensors"
    weights = load_file(path) | {"linear.bias": torch.tensor([float("nan")])}
    path.unlink()
    save_file(weights, path)
    for read in (check_outcome_model, load_outcome_model):
        with pytest.raises(UserError, match="not finite: linear.bias has 1 of 1 numbers"):
            read(folder)
