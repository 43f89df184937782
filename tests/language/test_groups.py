"""Answers, their rewards, and what the store keeps of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from algos.grpo import group_advantages
from rewards.compose import Breakdown, Rewards
from rewards.guard import Failure
from rl_lab.language.answering import Scored, ask, collect, means, plain, reward_means, score, scored_groups
from rl_lab.language.groups import Answered, merged, stored_answers
from rl_lab.language.model import answer_texts, item_prompt, load_chat_processor
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.records.types import Sampling
from tests.language.builders import FakeEngines, FakeLearner, make_item


@pytest.fixture(scope="module")
def answered(policy) -> Answered:
    """Six items with three answers each; the judge failed for the second answer of the second item."""
    items = [make_item(number, num_images=number % 2) for number in range(6)]
    engines = FakeEngines(policy, items, rate=lambda item: 0.5)
    prompts = [item_prompt(item, engines.processor, seed) for seed, item in enumerate(items)]
    sampling = Sampling(16, num_generations=3)
    answers, busy = collect(
        engines, ask(engines, prompts, sampling, FakeLearner(None).publish().reference, 4), lambda: None
    )
    assert engines.units == [4, 2] and busy == pytest.approx(0.02)
    texts = [answer_texts(row, engines.processor) for row in answers]
    scored = score(Rewards(), items, texts)
    scored.rewards[1, 1] = math.nan
    scored.failures[1][1] += ["judge/time-out", "judge/exception"]
    return Answered(np.arange(6) * 10, items, prompts, answers, texts, scored)


ITEMS = [make_item(0), make_item(1)]


def breakdown() -> Breakdown:
    rewards = [1.0, None, 0.5, None, None, 0.0]
    parts = {"answer": [1.0, None, 0.5, 0.25, None, 0.0], "format": [1.0] * 6}
    failures = [
        Failure(1, "judge", "time-out", "late"),
        Failure(3, "fn", "exception", ""),
        Failure(2, "fn", "exception", ""),
    ]
    return Breakdown(rewards, parts, failures)


def test_rewards_have_a_row_for_each_question_and_nan_where_a_call_failed():
    scored = scored_groups(breakdown(), ITEMS)
    np.testing.assert_array_equal(scored.rewards, [[1.0, math.nan, 0.5], [math.nan, math.nan, 0.0]])
    assert scored.rewards.dtype == np.float64
    assert [[part["answer"] for part in row] for row in scored.parts] == [[1.0, None, 0.5], [0.25, None, 0.0]]
    assert scored.failures == [[[], ["judge/time-out"], ["fn/exception"]], [["fn/exception"], [], []]]
    assert scored.examples == {
        "judge/time-out": "judge on answer 1 to item-0 (time-out: late)",
        "fn/exception": "fn on answer 0 to item-1 (exception: )",
    }


def test_counts_of_failures_are_those_of_the_rewards():
    expected = {name: value for name, value in breakdown().metrics().items() if name.startswith("reward_")}
    assert scored_groups(breakdown(), ITEMS).metrics == expected
    assert expected["reward_masked"] == pytest.approx(2 / 6) and expected["reward_failures/fn/exception"] == 2


def test_means_leave_out_what_has_no_reward():
    line = reward_means(ITEMS, scored_groups(breakdown(), ITEMS))
    assert line["reward/mean"] == 0.5 and line["reward/format"] == 1.0
    assert line["reward_category/perception"] == 0.75 and line["reward_category/prediction"] == 0.0
    assert line["reward_type/choice"] == 0.5
    assert means([("a", [math.nan]), ("b", [1.0, math.nan, 3.0])]) == {"b": 2.0}
    assert plain([1.0, math.nan]) == [1.0, None]


def test_rounds_are_joined_in_order_and_their_failures_counted_together(answered):
    whole = merged([answered.select([2, 0]), answered.select([1])])
    assert whole.numbers.tolist() == [20, 0, 10] and [item.id for item in whole.items] == ["item-2", "item-0", "item-1"]
    assert whole.num_tokens == sum(len(answer.tokens) for row in whole.answers for answer in row)
    np.testing.assert_array_equal(whole.scored.rewards, answered.scored.rewards[[2, 0, 1]])
    assert whole.scored.metrics == {
        "reward_failures/judge/time-out": 1.0,
        "reward_failures/judge/exception": 1.0,
        "reward_masked": pytest.approx(1 / 9),
    }
    assert whole.versions.tolist() == [1, 1, 1]


def test_the_learner_gets_advantages_and_which_answers_have_a_reward(answered):
    groups = answered.select([1, 2]).groups(torch.ones(2, 3, dtype=torch.float64))
    assert groups.advantages.dtype == torch.float32
    assert groups.scored.tolist() == [[True, False, True], [True] * 3]
    assert groups.completions == answered.answers[1:3] and groups.prompts == answered.prompts[1:3]


def test_the_store_gives_back_answers_texts_rewards_and_failures_to_the_bit(answered, policy, tmp_path):
    advantages = group_advantages(torch.from_numpy(answered.scored.rewards))
    store = RolloutStore(tmp_path)
    store.write(3, answered.rollouts(advantages, load_chat_processor(policy)), answered.columns())
    rows = store.read(steps=[3])
    answers, texts, scored = stored_answers(rows)
    assert answers == [[replace(answer, num_cached_tokens=0) for answer in row] for row in answered.answers]
    assert texts == answered.texts
    assert scored.rewards.tobytes() == answered.scored.rewards.tobytes()
    assert scored.parts == answered.scored.parts and scored.failures == answered.scored.failures
    assert [row["advantage"] for row in rows] == advantages.flatten().tolist()
    assert rows[0]["reward"] is not None and rows[4]["reward"] is None
    later = stored_answers([row for row in rows if row["group"] >= 4])
    assert later[1] == answered.texts[4:] and later[2].rewards.shape == (2, 3)


def test_token_texts_join_to_the_completion(answered, policy):
    rollout = answered.rollouts(torch.zeros(6, 3), load_chat_processor(policy))[0]
    assert "".join(rollout.token_texts).startswith(rollout.completion) and rollout.completion.startswith("<answer>")
    assert isinstance(answered.scored, Scored)
