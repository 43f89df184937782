"""Users' questions: both layouts, images from everywhere but the network, and every bad row named."""

import base64
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from envs.spatial_qa.items import Knobs
from envs.spatial_qa.questions import make_item
from rl_lab.common.errors import UserError
from rl_lab.graph.nodes import source_digest
from rl_lab.model.tokenizer import ROLES, load_tokenizer
from rl_lab.records import questions
from rl_lab.records.question_files import has_open_questions, source_files
from rl_lab.records.questions import BadRow, BadRowsError, item_conversation, read_questions
from tests.support.pools import png_bytes

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
GOOD = {"prompt": "How many? /think", "answer": 2, "reward_type": "count", "category": "perception"}


def data_uri(pixels=PIXELS):
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode()


@pytest.fixture
def write(tmp_path):
    """Write rows (objects, or text as it is) beside an image file; the path of the JSONL."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png_bytes(PIXELS))
    (tmp_path / "clip.mp4").write_bytes(b"0")

    def to_file(*rows):
        path = tmp_path / "mine.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return to_file


def test_a_question_is_read_with_images_from_files_and_data_uris(write):
    row = GOOD | {"images": ["pictures/a.png", data_uri(PIXELS[::-1])], "id": "q7", "solution": "<answer>2</answer>"}
    (item,) = read_questions(write(row)).items
    assert (item.id, item.answer, item.reward_type, item.category) == ("q7", 2, "count", "perception")
    assert item.prompt == "How many? /think" and item.solution == "<answer>2</answer>"
    np.testing.assert_array_equal(item.images[0], PIXELS)
    np.testing.assert_array_equal(item.images[1], PIXELS[::-1])


def test_rows_without_id_are_named_by_their_line_and_blank_lines_are_no_rows(write):
    data = read_questions(write(GOOD, b"", b"  ", GOOD | {"images": "pictures/a.png"}))
    assert [item.id for item in data.items] == ["mine-1", "mine-4"]
    assert [len(item.images) for item in data.items] == [0, 1]


def test_structured_answers_may_be_json_or_its_text(write):
    box = {"reward_type": "box", "answer": [0, 0, 10, 20]}
    data = read_questions(write(GOOD | box, GOOD | box | {"answer": "[0, 0, 10, 20]"}))
    assert [item.answer for item in data.items] == [[0, 0, 10, 20]] * 2


def test_our_own_items_survive_the_round_trip(write):
    for task in ("point_object", "object_path", "unstack_order"):
        made = make_item(task, 0, Knobs())
        record = {
            name: made.record()[name] for name in ("id", "prompt", "answer", "reward_type", "category", "solution")
        }
        (read,) = read_questions(write(record | {"images": [data_uri(made.images[0])]})).items
        assert (read.id, read.prompt, read.answer, read.solution) == (made.id, made.prompt, made.answer, made.solution)
        np.testing.assert_array_equal(read.images[0], made.images[0])


def test_the_messages_layout_is_read_as_it_is(write):
    turns = [
        {"role": "system", "content": "You see a robot."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "pictures/a.png"},
                {"type": "text", "text": "And this?"},
                {"type": "image", "image": data_uri(PIXELS[::-1])},
                {"type": "text", "text": "What changed? /think"},
            ],
        },
        {"role": "assistant", "content": "<think>\nx\n</think>\n<answer>\nB\n</answer>"},
        {"role": "user", "content": "Watch. /no_think"},
        {"role": "tool", "content": [{"type": "video", "video": "clip.mp4"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>\n\n</think>\n<answer>\nA\n</answer>"}]},
    ]
    (talk,) = read_questions(write({"messages": turns, "id": 3, "type": "cot"})).conversations
    assert talk.id == "3" and [turn["role"] for turn in talk.messages] == [turn["role"] for turn in turns]
    assert [part["type"] for part in talk.messages[1]["content"]] == ["image", "text", "image", "text"]
    assert talk.messages[1]["content"][3]["text"] == "What changed? /think"
    assert talk.messages[2]["content"] == turns[2]["content"]
    np.testing.assert_array_equal(talk.images[1], PIXELS[::-1])
    assert [video.name for video in talk.videos] == ["clip.mp4"]


def test_text_only_conversations_have_no_images(write):
    turns = [{"role": "user", "content": "Plan it. /think"}, {"role": "assistant", "content": "Done."}]
    (talk,) = read_questions(write({"messages": turns})).conversations
    assert talk.images == () and talk.messages == tuple(turns)


def user(content):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]}


BAD = [
    (b"{not json", "not JSON in UTF-8"),
    (b'{"prompt": "\xff"}', "not JSON in UTF-8"),
    (b"[1, 2]", "not a JSON object"),
    (b"[" * 100_000, "not JSON"),
    ({"prompt": "x"}, "missing answer, reward_type, category"),
    (GOOD | {"promt": "x"}, "unknown fields promt; known are prompt, images"),
    (GOOD | {"prompt": " "}, "prompt is ' '; give a text that is not empty"),
    (GOOD | {"category": "maths"}, "category is 'maths'; use one of perception, prediction, interaction, planning"),
    (GOOD | {"reward_type": "boxs"}, "unknown reward type 'boxs'"),
    (GOOD | {"reward_type": ["box"]}, "unknown reward type"),
    (GOOD | {"reward_type": "box", "answer": [1, 2, 3]}, "the ground truth"),
    (GOOD | {"reward_type": "box", "answer": "[1, 2"}, "text but not JSON"),
    (GOOD | {"reward_type": "open", "answer": 3}, "answer is 3; give a text"),
    (GOOD | {"answer": float("nan")}, "not a finite number"),
    (GOOD | {"id": ["a"]}, "id is ['a']; give a text or a whole number"),
    (GOOD | {"images": ["https://example.org/a.png"]}, "is a URL; nothing is downloaded here"),
    (GOOD | {"images": ["no.png"]}, "there is no image no.png beside the data"),
    (GOOD | {"images": ["clip.mp4"]}, "an image cannot be read"),
    (GOOD | {"images": [3]}, "an image cannot be read"),
    (GOOD | {"images": ["data:image/png,abc"]}, "a data URI that is not base64"),
    (GOOD | {"images": ["data:image/png;base64,a*b"]}, "base64 is damaged"),
    (GOOD | {"images": ["data:image/png;base64,YWJj"]}, "an image cannot be read"),
    ({"messages": "hello"}, "messages is not a list of turns"),
    ({"messages": []}, "there is no assistant turn behind a user turn"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "role is 'robot'; use one of system, user, assistant, tool"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "role is ['user']"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}, "a system turn comes after"),
    ({"messages": [{"role": "user", "content": "x"}]}, "there is no assistant turn behind a user turn"),
    (user(None), "content of a user turn is neither text nor a list"),
    (user([{"type": "audio", "audio": "x"}]), "has type 'audio'; use text, image or video"),
    (user([{"type": "image"}]), "an item of type image has no field image"),
    (user([{"type": "video", "video": "http://example.org/a.mp4"}]), "is a URL; nothing is downloaded here"),
    (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "image", "image": "x"}]},
            ]
        },
        "an assistant writes text only",
    ),
    (user("x") | {"answer": "B"}, "unknown fields answer; known are messages, id, type"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason[:40] for _, reason in BAD])
def test_a_bad_row_is_named_by_line_and_reason(write, row, reason):
    path = write(GOOD, row, GOOD)
    with pytest.raises(BadRowsError) as error:
        read_questions(path)
    assert "\n" not in str(error.value)
    assert f"mine.jsonl has 1 bad row: line 2: {error.value.bad_rows[0].reason}" in str(error.value)
    assert reason in error.value.bad_rows[0].reason
    data = read_questions(path, skip_bad=True)
    assert [item.id for item in data.items] == ["mine-1", "mine-3"]
    assert [bad.line for bad in data.bad_rows] == [2]


def test_every_bad_row_is_in_the_report_and_the_message_stays_short(write):
    path = write(*[GOOD | {"category": "maths"}] * 30)
    with pytest.raises(UserError, match="30 bad rows: line 1: .* and 10 more") as error:
        read_questions(path)
    assert isinstance(error.value, BadRowsError) and [row.line for row in error.value.bad_rows] == list(range(1, 31))


def test_an_id_that_comes_twice_is_a_bad_row(write):
    data = read_questions(write(GOOD | {"id": "a"}, GOOD | {"id": "a"}), skip_bad=True)
    assert data.bad_rows == [BadRow(2, "id 'a' is that of line 1 already; give each row its own")]


def test_a_missing_or_empty_file_is_one_line(write, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="mine.jsonl has no rows"):
        read_questions(write(b""))


def test_a_saved_table_and_a_parquet_file_are_read_with_their_own_images(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "prompt": ["Where? /no_think", "How many?"],
        "images": [[{"bytes": png_bytes(PIXELS), "path": None}], []],
        "answer": ['{"point": [3, 4]}', "2"],
        "reward_type": ["point", "count"],
        "category": ["interaction", "perception"],
        "id": ["a", None],
    }
    features = datasets.Features(
        {name: datasets.Value("string") for name in rows if name != "images"} | {"images": [datasets.Image()]}
    )
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "rows.parquet"))
    for name in ("saved", "rows.parquet"):
        first, second = read_questions(tmp_path / name).items
        assert (first.id, first.answer, second.id, second.answer) == ("a", {"point": [3, 4]}, "table-2", 2)
        np.testing.assert_array_equal(first.images[0], PIXELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no table of datasets"):
        read_questions(tmp_path / "empty")


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json"])
@pytest.mark.parametrize("content", ["", "[]", "3", "[" * 100_000], ids=["nothing", "list", "number", "deep"])
def test_what_datasets_wrote_about_a_table_may_be_damaged(tmp_path, name, content):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": ["Where?"]}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / name).write_text(content)
    with pytest.raises(UserError, match="saved is no table of datasets"):
        read_questions(tmp_path / "saved")


def test_a_source_depends_on_the_pictures_that_it_names(tmp_path, write):
    source = write(GOOD | {"images": "shown.png"})
    (source.parent / "shown.png").write_bytes(png_bytes(PIXELS))
    assert source_files(source) == [source, source.parent / "shown.png"]
    before = source_digest(source)
    (source.parent / "shown.png").write_bytes(png_bytes(PIXELS) + b"more")
    assert source_digest(source) != before


def test_open_questions_are_found_without_reading_pictures(write):
    assert not has_open_questions(write(GOOD))
    assert has_open_questions(write(GOOD | {"reward_type": "open", "answer": "a text", "images": "missing.png"}))


def test_rows_of_any_table_may_hold_arrays_and_bad_ones_are_numbered():
    rows = [GOOD | {"images": PIXELS}, GOOD | {"images": [PIXELS.astype(float)]}]
    (_, item), (_, bad) = questions._rows(enumerate(rows, start=1), "table", Path(), Counter())
    np.testing.assert_array_equal(item.images[0], PIXELS)
    assert bad.line == 2 and "give uint8 [H, W, 3]" in bad.reason


def test_items_become_dialogues_for_supervised_training(write):
    item = make_item("count", 0, Knobs())
    talk = item_conversation(item)
    assert [part["type"] for part in talk.messages[0]["content"]] == ["image", "text"]
    assert talk.messages[1] == {"role": "assistant", "content": item.solution} and talk.images == item.images
    written = load_tokenizer().apply_chat_template(list(talk.messages), tokenize=False)
    assert item.prompt in written and item.solution in written and written.count(ROLES["image"]) == 1
    (own,) = read_questions(write(GOOD)).items
    with pytest.raises(ValueError, match="item mine-1 has no solution"):
        item_conversation(own)
