"""Answers, their rewards, and what the store keeps of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from algos.grpo import group_advantages
from rewards.isolation import FailedCall
from rewards.rubric import Breakdown, Rewards
from rl_lab.model.checkpoint import load_chat_processor
from rl_lab.records.rollouts import RolloutStore, stored_groups
from rl_lab.records.token_batches import item_prompt, rollout_batch, with_token_texts
from rl_lab.records.types import (
    Completion,
    Prompt,
    RolloutGroup,
    Sampling,
    all_completions,
    filled,
    group_rewards,
    group_versions,
    num_tokens,
)
from rl_lab.rollouts.answering import (
    ask,
    collect,
    failure_metrics,
    means,
    plain,
    reward_means,
    rollout_groups,
    score,
    with_advantages,
    with_rewards,
)
from tests.support.engines import FakeEngines
from tests.support.learners import FakeLearner
from tests.support.questions import make_item


@pytest.fixture(scope="module")
def groups(policy) -> list[RolloutGroup]:
    """Six items with three answers each; the judge failed for the second answer of the second item."""
    items = [make_item(number, num_images=number % 2) for number in range(6)]
    engines = FakeEngines(policy, items, rate=lambda item: 0.5)
    prompts = [item_prompt(item, engines.processor, seed) for seed, item in enumerate(items)]
    sampling = Sampling(16, num_generations=3)
    answers, busy = collect(
        engines, ask(engines, prompts, sampling, FakeLearner(None).publish().reference, 4), lambda: None
    )
    assert engines.units == [4, 2] and busy == pytest.approx(0.02)
    found, first_failures = score(Rewards(), rollout_groups(items, prompts, answers, engines.processor))
    assert first_failures == {}
    found[1].completions[1] = replace(
        found[1].completions[1], reward=None, failures=("judge/time-out", "judge/exception")
    )
    return found


ITEMS = [make_item(0), make_item(1)]


def breakdown() -> Breakdown:
    rewards = [1.0, None, 0.5, None, None, 0.0]
    parts = {"answer": [1.0, None, 0.5, 0.25, None, 0.0], "format": [1.0] * 6}
    failures = [
        FailedCall(1, "judge", "time-out", "late"),
        FailedCall(3, "fn", "exception", ""),
        FailedCall(2, "fn", "exception", ""),
    ]
    return Breakdown(rewards, parts, failures)


def scored():
    """Two items with three answers each that were worth what `breakdown` says."""
    completion = Completion((1,), (2,), (-0.1,), 1, finished=True)
    return with_rewards([RolloutGroup(item, Prompt(()), [completion] * 3) for item in ITEMS], breakdown())


def test_rewards_have_a_row_for_each_question_and_nan_where_a_call_failed():
    groups, first_failures = scored()
    np.testing.assert_array_equal(group_rewards(groups), [[1.0, math.nan, 0.5], [math.nan, math.nan, 0.0]])
    assert group_rewards(groups).dtype == np.float64
    parts = [[one.rewards["answer"] for one in group.completions] for group in groups]
    assert parts == [[1.0, None, 0.5], [0.25, None, 0.0]]
    assert [[one.failures for one in group.completions] for group in groups] == [
        [(), ("judge/time-out",), ("fn/exception",)],
        [("fn/exception",), (), ()],
    ]
    assert first_failures == {
        "judge/time-out": "judge on answer 1 to item-0 (time-out: late)",
        "fn/exception": "fn on answer 0 to item-1 (exception: )",
    }


def test_counts_of_failures_are_those_of_the_rewards():
    expected = {name: value for name, value in breakdown().metrics().items() if name.startswith("reward_")}
    assert failure_metrics(scored()[0]) == expected
    assert expected["reward_masked"] == pytest.approx(2 / 6) and expected["reward_failures/fn/exception"] == 2


def test_means_leave_out_what_has_no_reward():
    line = reward_means(scored()[0])
    assert line["reward/mean"] == 0.5 and line["reward/format"] == 1.0
    assert line["reward_category/perception"] == 0.75 and line["reward_category/prediction"] == 0.0
    assert line["reward_type/choice"] == 0.5
    assert means([("a", [math.nan]), ("b", [1.0, math.nan, 3.0])]) == {"b": 2.0}
    assert plain([1.0, math.nan]) == [1.0, None]


def test_the_failures_of_all_groups_are_counted_together(groups):
    some = [groups[2], groups[0], groups[1]]
    assert num_tokens(some) == sum(len(answer.tokens) for group in some for answer in group.completions)
    np.testing.assert_array_equal(group_rewards(some), group_rewards(groups)[[2, 0, 1]])
    assert failure_metrics(some) == {
        "reward_failures/judge/time-out": 1.0,
        "reward_failures/judge/exception": 1.0,
        "reward_masked": pytest.approx(1 / 9),
    }
    assert group_versions(some).tolist() == [1, 1, 1]


def test_the_learner_gets_advantages_and_which_answers_have_a_reward(groups, policy):
    processor, some = load_chat_processor(policy).image_processor, filled(groups[1:3], advantage=[1.0] * 6)
    batch = rollout_batch(some, processor)
    assert batch.advantages.dtype == torch.float32
    assert batch.group.tolist() == [0, 0, 1, 1, 1] and len(rollout_batch(some, processor, rewarded_only=False)) == 6
    read = [answer.prompt_tokens + answer.tokens for answer in all_completions(some) if answer.reward is not None]
    assert [tuple(row[mask].tolist()) for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)] == read


def test_the_store_gives_back_answers_texts_rewards_and_failures_to_the_bit(groups, policy, tmp_path):
    groups = with_advantages(groups, "group")
    whole, store = with_token_texts(groups, load_chat_processor(policy)), RolloutStore(tmp_path)
    store.write(3, whole)
    rows = store.read(steps=[3])
    assert stored_groups(rows) == [group.completions for group in whole]
    advantages = group_advantages(torch.from_numpy(group_rewards(groups)), "group")
    assert [row["advantage"] for row in rows] == advantages.flatten().tolist()
    assert rows[0]["reward"] is not None and rows[4]["reward"] is None
    later = stored_groups([row for row in rows if row["group"] >= 4])
    assert later == [group.completions for group in whole[4:]]


def test_token_texts_join_to_the_completion(groups, policy):
    (first, *_) = all_completions(with_token_texts(groups, load_chat_processor(policy)))
    assert "".join(first.token_texts).startswith(first.text) and first.text.startswith("<answer>")
