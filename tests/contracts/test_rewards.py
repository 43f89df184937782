"""Reward functions of one's own: their contract, their columns, and those of TRL by name."""

import contextlib
import json
from pathlib import Path

import pytest

from rewards.config import RewardConfig
from rewards.rubric import Rewards
from rewards.threshold import solved
from rl_lab.check import main
from rl_lab.common.errors import RunError
from rl_lab.records.item_files import ItemFile, item_row, write_rows
from rl_lab.records.questions import read_questions
from rl_lab.rollouts.answering import reward_columns
from tests.support.refusals import refusal

EXAMPLE = f"{Path(__file__).resolve().parents[2] / 'examples' / 'graded.py'}:graded"


def read(folder, *rows):
    """The items of a file, as a run stores them."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_rows(folder / "items.arrow", map(item_row, read_questions(folder / "rows.jsonl").items))
    stored = ItemFile(folder / "items.arrow")
    return [stored[row] for row in range(len(stored))]


def score(items, completions, **settings):
    with contextlib.closing(Rewards(RewardConfig(**settings))) as rewards:
        return rewards.breakdown([item.prompt for item in items], completions, **reward_columns(items))


def test_fields_of_ones_own_reach_the_function_which_may_be_the_only_truth(tmp_path):
    items = read(
        tmp_path,
        {"prompt": "How long?", "truth": 120, "tolerance": 5},
        {"prompt": "How high?", "truth": 70, "tolerance": 10, "category": "planning"},
        {"prompt": "Is it red?", "answer": "yes", "reward_type": "yes_no"},
    )
    assert [item.category for item in items] == ["perception", "planning", "perception"]
    result = score(
        items,
        ["It is 122 cm", "85", "<answer>yes</answer>"],
        weights={"answer": 1.0, "graded": 1.0},
        functions={"graded": EXAMPLE},
    )
    assert result.failures == [] and result.rewards == [1.0, 0.5, 1.0]
    assert result.parts["answer"] == [None, None, 1.0] and result.parts["graded"] == [1.0, 0.5, None]


def test_graded_rewards_become_0_and_1_where_an_answer_counts():
    said = [f"<answer><point>({x}, 500)</point></answer>" for x in (500, 550, 551)]  # exp(-50 / 141.4) is .702
    assert solved(["x"] * 3, said, answer=[[500, 500]] * 3, reward_type=["point"] * 3) == [1.0, 1.0, 0.0]


def test_questions_that_nothing_scores_end_the_run(tmp_path):
    items = read(tmp_path, {"prompt": "How long?", "truth": 120})
    with pytest.raises(ValueError, match="scored by functions of one's own; give one a weight"):
        score(items, ["5"], weights={"answer": 1.0})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "truth": 1, "awnser": "y"}, "unknown fields awnser; known are prompt"),
        ({"prompt": "x", "seed": 1}, "field 'seed' cannot be a column for rewards"),
        ({"prompt": "x", "two words": 1}, "field 'two words' cannot be a column"),
        ({"prompt": "x", "reward_type": "choice", "truth": 1}, "missing answer"),
        ({"prompt": "x"}, "missing answer, reward_type, category"),
    ],
)
def test_fields_that_cannot_be_columns_are_bad_rows(tmp_path, row, said):
    assert said in refusal(read, tmp_path, row)


def test_trls_function_gets_messages_and_counts_with_its_weight(tmp_path):
    items = read(tmp_path, *[{"prompt": "x", "answer": "yes", "reward_type": "yes_no"}] * 2)
    said = ["<think>\nred\n</think>\n<answer>yes</answer>", "<answer>yes</answer>"]
    settings = {"weights": {"answer": 0.0, "think": 1.0}, "functions": {"think": "trl.rewards:think_format_reward"}}
    result = score(items, said, **settings, guard={"memory_gib": None})
    assert result.failures == [] and result.rewards == [1.0, 0.0]


def test_the_example_keeps_the_contract_and_a_function_that_does_not_is_told(tmp_path, capsys):
    assert main(["reward", EXAMPLE, "truth=120", "tolerance=5"]) == 0
    assert "gives a number in 0..1 or None for every answer" in capsys.readouterr().out
    (tmp_path / "wild.py").write_text("def wild(completions, **columns):\n    return [2.0] * len(completions)\n")
    with pytest.raises(RunError, match=r"wild.py:wild is no reward: out of range for the answer .*2.0 is not in 0..1"):
        main(["reward", f"{tmp_path / 'wild.py'}:wild"])
