"""The rollouts of a run: what is written is read, by item and step, and a killed writer leaves no torn file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rl_lab.records.rollouts import RolloutStore
from tests.support.learners import Killed
from tests.support.rollouts import groups_of

ROLLOUT = dict(
    item="pointing-7",
    group=0,
    sample=0,
    prompt="where is the cup? /think",
    prompt_tokens=[5, 6, 7],
    completion="<think>…</think><answer>(1, 2)</answer>",
    tokens=[11, 12, 2],
    token_texts=["<think>", "…", "<|end|>"],
    logprobs=[-0.5, -0.25, 0.0],
    weight_version=3,
    finished=True,
    rewards={"point": 0.75, "format": 1.0, "judge": None},
    reward=0.8,
    advantage=-0.5,
)


def some(step: int, items: tuple[str, ...] = ("a", "b")) -> list[dict[str, Any]]:
    return [
        ROLLOUT | dict(item=item, group=group, sample=sample, weight_version=step)
        for group, item in enumerate(items)
        for sample in range(2)
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    failed = ROLLOUT | dict(sample=1, reward=None, rewards={}, advantage=0.0, finished=False, tokens=[])
    failed = failed | dict(token_texts=[], logprobs=[])
    RolloutStore(tmp_path).write(4, groups_of([ROLLOUT, failed]))
    rows = RolloutStore(tmp_path).read()
    assert rows == [{"step": 4} | ROLLOUT | {"failures": []}, {"step": 4} | failed | {"failures": []}]


def test_arrays_are_stored_like_lists(tmp_path: Path) -> None:
    tokens, logprobs = np.array([3, 4, 5]), np.array([-1.0, -2.0, -0.5], np.float32)
    RolloutStore(tmp_path).write(0, groups_of([ROLLOUT | dict(tokens=tokens, logprobs=logprobs)]))  # type: ignore[arg-type]
    (row,) = RolloutStore(tmp_path).read(columns=["tokens", "logprobs"])
    assert row == {"tokens": [3, 4, 5], "logprobs": [-1.0, -2.0, -0.5]}


def test_rollouts_are_read_by_item_step_and_column(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for step, items in ((2, ("b", "c")), (0, ("a", "b")), (10, ("c", "a"))):
        store.write(step, groups_of(some(step, items)))
    assert store.steps() == [0, 2, 10]
    assert [row["step"] for row in store.read(items=["b"])] == [0, 0, 2, 2]
    assert store.read(items=["a"], steps=[10, 99], columns=["item", "sample"]) == [
        {"item": "a", "sample": 0},
        {"item": "a", "sample": 1},
    ]
    assert store.read(items=["nobody"]) == []
    newest, problems = store.newest(["a", "b", "nobody"], 3)
    assert problems == []
    assert {item: [(row["step"], row["sample"]) for row in rows] for item, rows in newest.items()} == {
        "a": [(10, 0), (10, 1), (0, 0)],
        "b": [(2, 0), (2, 1), (0, 0)],
        "nobody": [],
    }


def test_a_damaged_file_is_named_and_does_not_hide_the_others(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for step in range(3):
        store.write(step, groups_of(some(step, ("a",))))
    store.path(1).write_bytes(b"torn")
    newest, (problem,) = store.newest(["a"], 9)
    assert [row["step"] for row in newest["a"]] == [2, 2, 0, 0]
    assert problem.startswith("rollouts/step-00000001.parquet cannot be read: ")
    assert store.newest(["a"], 2)[1] == []


def test_a_run_without_rollouts_has_none(tmp_path: Path) -> None:
    assert RolloutStore(tmp_path).read() == []
    assert RolloutStore(tmp_path).newest(["a"], 3) == ({"a": []}, [])
    assert list(tmp_path.iterdir()) == []


def test_columns_are_added_later_and_are_none_where_they_are_missing(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    store.write(0, groups_of(some(0)), {"category": ["planning"] * 4})
    store.write(1, groups_of(some(1)))
    before = store.read(steps=[0])
    store.add_columns(0, {"teacher_logprobs": [[-1.0], [-2.0], [-3.0], None]})
    added = [{"teacher_logprobs": value} for value in ([-1.0], [-2.0], [-3.0], None)]
    assert store.read(steps=[0]) == [row | value for row, value in zip(before, added, strict=True)]
    rows = store.read(columns=["category", "teacher_logprobs"])
    assert rows[0] == {"category": "planning", "teacher_logprobs": [-1.0]}
    assert rows[-1] == {"category": None, "teacher_logprobs": None}
    assert store.read()[-1]["category"] is None


def test_writing_a_step_again_replaces_it_and_resuming_forgets_later_ones(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for step in range(4):
        store.write(step, groups_of(some(step)))
    store.write(1, groups_of(some(1, ("z",))))
    assert {row["item"] for row in store.read(steps=[1])} == {"z"}
    store.forget_after(1)
    assert store.steps() == [0, 1]


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_writer_killed_at_any_moment_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store = RolloutStore(tmp_path)
    store.write(0, groups_of(some(0)))
    before = store.read()

    def torn(table: Any, file: Any, **_: Any) -> None:
        file.write(b"PAR1 and then nothing")
        raise Killed

    def never(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(*((pq, "write_table", torn) if moment == "writing" else (os, "replace", never)))
    for attempt in (lambda: store.write(1, groups_of(some(1))), lambda: store.add_columns(0, {"more": [1] * 4})):
        with pytest.raises(Killed):
            attempt()
    monkeypatch.undo()
    assert RolloutStore(tmp_path).read() == before
    store.write(1, groups_of(some(1)))
    assert store.steps() == [0, 1]


def test_what_cannot_be_stored_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    with pytest.raises(ValueError, match="item pointing-7 sample 0 has 1 tokens but 3 log-probabilities"):
        store.write(0, groups_of([ROLLOUT | dict(tokens=[1], token_texts=["a"])]))
    with pytest.raises(ValueError, match="sample 0 has 3 tokens but 2 texts"):
        store.write(0, groups_of([ROLLOUT | dict(token_texts=["a", "b"])]))
    with pytest.raises(ValueError, match="step is -1"):
        store.write(-1, groups_of([ROLLOUT]))
    with pytest.raises(ValueError, match="a column 'reward' already"):
        store.write(0, groups_of([ROLLOUT]), {"reward": [1.0]})
    assert store.steps() == []
    store.write(0, groups_of([ROLLOUT]))
    with pytest.raises(ValueError, match="2 values for 1 rollouts"):
        store.add_columns(0, {"more": [1, 2]})
    with pytest.raises(ValueError, match="step 3 is not stored"):
        store.add_columns(3, {"more": [1]})
    with pytest.raises(ValueError, match="no stored step has a column 'scroe'"):
        store.read(columns=["scroe"])
