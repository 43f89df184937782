"""Sets of questions on disk: what was written is read, by row, and a writer that fails leaves nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.spatial_qa.items import Item
from rl_lab.records.item_files import (
    ROWS_AT_ONCE,
    ItemFile,
    RowFile,
    SolutionFile,
    batched,
    conversation_row,
    item_row,
    png,
    write_rows,
)
from rl_lab.records.questions import Conversation
from tests.support.questions import make_item

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def same(one: Item, other: Item) -> bool:
    pictures = zip(one.images, other.images, strict=True)
    return one.record() == other.record() and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pictures)


def write_items(path, items):
    write_rows(path, map(item_row, items))
    return ItemFile(path)


def test_items_of_many_batches_are_read_by_row_with_all_their_pictures(tmp_path):
    items = [make_item(number, number % 3) for number in range(2 * ROWS_AT_ONCE + 3)]
    read = write_items(tmp_path / "items.arrow", items)
    assert len(read) == len(items)
    for row in (0, 1, 2, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE, len(items) - 1, 5):
        assert same(read[row], items[row])
        assert read.pngs(row) == [png(image) for image in items[row].images]
    assert same(read[np.int64(7)], items[7])


@given(answer=JSON, prompt=st.text(max_size=20), seed=st.integers(0, 2**63 - 1))
def test_answers_of_any_json_value_come_back(tmp_path_factory, answer, prompt, seed):
    item = make_item(0, 0, answer=answer, prompt=prompt, seed=seed)
    assert same(write_items(tmp_path_factory.mktemp("json") / "items.arrow", [item])[0], item)


@pytest.mark.parametrize("row", [-1, 2, 100])
def test_rows_that_are_not_there_are_index_errors(tmp_path, row):
    path = tmp_path / "items.arrow"
    write_rows(path, map(item_row, [make_item(0), make_item(1)]))
    for kind in (ItemFile, SolutionFile):
        with pytest.raises(IndexError):
            kind(path)[row]
    assert [item.id for item in ItemFile(path)] == ["item-0", "item-1"]


def test_a_writer_that_fails_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "items.arrow"
    write_items(path, [make_item(1)])

    def rows():
        yield from map(item_row, map(make_item, range(300)))
        raise RuntimeError("the generator is gone")

    with pytest.raises(RuntimeError, match="generator is gone"):
        write_rows(path, rows())
    assert [item.id for item in ItemFile(path)] == ["item-1"]


def test_rows_are_taken_a_batch_at_a_time(tmp_path):
    taken = []

    def rows():
        for number in range(5):
            taken.append(number)
            yield {"id": number}, []

    parts = batched(rows(), 2)
    assert [row[0]["id"] for row in next(parts)] == [0, 1] and taken == [0, 1]
    assert [len(part) for part in parts] == [2, 1]
    write_rows(tmp_path / "empty.arrow", [])
    assert len(RowFile(tmp_path / "empty.arrow")) == 0


def test_a_worked_solution_is_a_conversation(tmp_path):
    item = make_item(3, num_images=2)
    write_rows(tmp_path / "rows.arrow", [item_row(item)])
    found = SolutionFile(tmp_path / "rows.arrow")[0]
    assert found.id == item.id and found.messages[-1] == {"role": "assistant", "content": item.solution}
    assert [part["type"] for part in found.messages[0]["content"]] == ["image", "image", "text"]
    assert all(np.array_equal(a, b) for a, b in zip(found.images, item.images, strict=True))


def test_a_conversation_comes_back_whole_beside_items(tmp_path):
    picture = make_item(1).images[0]
    video = tmp_path / "a.mp4"
    video.write_bytes(b"")
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "what is this?"}]
    turns = ({"role": "user", "content": content}, {"role": "assistant", "content": "a cup"})
    conversation = Conversation("talk-1", turns, (picture,), (video,))
    write_rows(tmp_path / "rows.arrow", [item_row(make_item(0)), conversation_row(conversation)])
    found = SolutionFile(tmp_path / "rows.arrow")[1]
    assert (found.id, found.messages, found.videos) == ("talk-1", turns, (video.absolute(),))
    assert np.array_equal(found.images[0], picture)
    assert found.chat()[0]["content"][1] == {"type": "video", "video": str(video.absolute())}
