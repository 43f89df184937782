"""Files of one's own in place of generated questions: no row is lost without a word."""

from __future__ import annotations

import json

import pytest

from rl_lab.errors import UserError
from rl_lab.language.item_files import ItemFile, SolutionFile
from rl_lab.language.stages import _take_file

QUESTION = {"prompt": "is it red? /no_think", "answer": "yes", "reward_type": "yes_no", "category": "perception"}
WORKED = QUESTION | {"solution": "<answer>yes</answer>"}
TALK = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


@pytest.fixture
def take(tmp_path):
    """Rows of a file as a set: the counts, and the set's file."""

    def took(name: str, rows: list[dict], skip_bad: bool = False):
        source, target = tmp_path / "mine.jsonl", tmp_path / "rows.arrow"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return _take_file(source, name, target, skip_bad=skip_bad), target

    return took


def test_questions_make_a_pool_and_solutions_and_conversations_a_cold_start(take):
    counts, path = take("train", [QUESTION, WORKED])
    assert counts == {"questions": 2, "file": "mine.jsonl", "left_out": []} and len(ItemFile(path)) == 2
    counts, path = take("cold_start", [WORKED, TALK])
    assert counts["questions"] == 2
    assert [row.messages[-1]["content"] for row in SolutionFile(path)] == ["<answer>yes</answer>", "hi"]


def test_fields_without_meaning_are_counted(take):
    counts, _ = take("cold_start", [TALK | {"_category": "planning"}, TALK | {"_category": "x", "type": "cot"}])
    assert counts["ignored_fields"] == {"_category": 2} and counts["left_out"] == []


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("train", TALK, "a conversation has no answer to score; give it in cold_start_file"),
        ("held_out", TALK, "a conversation has no answer to score"),
        ("cold_start", QUESTION, "it has no solution to imitate"),
    ],
)
def test_a_row_that_the_set_cannot_use_is_named_or_listed(take, name, row, reason):
    with pytest.raises(UserError, match=rf"questions.{name}_file: mine.jsonl has 1 rows .*mine-2: {reason}"):
        take(name, [WORKED, row])
    counts, path = take(name, [WORKED, row], skip_bad=True)
    assert counts["questions"] == 1 == len(ItemFile(path))
    assert counts["left_out"][0]["id"] == "mine-2" and reason in counts["left_out"][0]["reason"]
    with pytest.raises(UserError, match="no row that can be used"):
        take(name, [row], skip_bad=True)
