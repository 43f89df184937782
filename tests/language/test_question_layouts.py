"""Every layout of docs/data.md's table: a small file of each gives the rows that were meant."""

import gzip
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rl_lab.common.errors import UserError
from rl_lab.records.question_files import has_open_questions, source_files
from rl_lab.records.questions import read_questions

QUESTION = {"prompt": "how many?", "answer": 2, "reward_type": "count", "category": "perception"}
RED, BLUE = ((np.zeros((4, 6, 3)) + colour).astype(np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    """Two pictures beside the data, and the working directory elsewhere."""
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    Image.fromarray(RED).save(tmp_path / "data" / "pictures" / "red.png")
    Image.fromarray(BLUE).save(tmp_path / "data" / "pictures" / "blue.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "data"


@pytest.fixture
def talk(pictures):
    """The one conversation that a row gives."""

    def read(row):
        path = pictures / "talks.jsonl"
        path.write_text(json.dumps(row) + "\n")
        data = read_questions(path)
        talk.ignored = dict(data.ignored)
        (found,) = data.conversations
        return found

    talk = read
    return read


def shape(conversation):
    """Turns as text, with R and B where the pictures stand."""
    names = iter("R" if (image == RED).all() else "B" for image in conversation.images)
    return [
        turn["content"]
        if isinstance(turn["content"], str)
        else "".join(next(names) if part["type"] == "image" else f"[{part['text']}]" for part in turn["content"])
        for turn in conversation.messages
    ]


def said(user, **more):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": "yes"}]} | more


def test_fields_that_mean_nothing_are_counted_and_paths_are_found_from_the_working_directory(pictures, tmp_path):
    parts = [{"type": "image", "image": "data/pictures/red.png"}, {"type": "text", "text": "why? /no_think"}]
    rows = [said(parts, _category="planning", type="cot"), said("why?", _category="affordance", weight=2)]
    path = pictures / "demo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="line 1: there is no image data/pictures/red.png beside the data or in"):
        read_questions(path)
    with pytest.MonkeyPatch.context() as there:
        there.chdir(tmp_path)
        data = read_questions(path)
        (named,) = source_files(path)[1:]
        assert named.samefile(pictures / "pictures" / "red.png")
    assert data.ignored == {"_category": 2, "weight": 1}
    assert [shape(talk) for talk in data.conversations] == [["R[why? /no_think]", "yes"], ["why?", "yes"]]


def test_a_picture_beside_the_data_comes_before_one_in_the_working_directory(pictures, tmp_path, talk):
    shutil.copytree(pictures / "pictures", "pictures")
    shutil.copy("pictures/blue.png", "pictures/red.png")
    found = talk(said([{"type": "image", "image": "pictures/red.png"}, {"type": "text", "text": "x"}]))
    assert shape(found) == ["R[x]", "yes"]


def llava(value, **more):
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": " yes\n"}]} | more


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (llava("<image>\nwhich colour?", image="pictures/red.png"), ["R[which colour?]", " yes\n"]),
        (llava("from <image> to <image> ?", image=["pictures/red.png", "pictures/blue.png"]), ["[from]R[to]B[?]"]),
        (llava("<image> here", image="red.png", data_path="pictures"), ["R[here]"]),
        (llava("text alone"), ["text alone"]),
        ({"conversations": [{"from": "system", "value": "be brief"}, *llava("x")["conversations"]]}, ["be brief", "x"]),
    ],
)
def test_llava_as_the_official_code_reads_it(talk, row, expected):
    assert shape(talk(row))[: len(expected)] == expected


def test_an_array_of_llava_rows_whose_ids_repeat(pictures):
    row = llava("<image>\nwhich colour?", image="pictures/red.png", id="same")
    path = pictures / "talks.json"
    path.write_text(json.dumps([row, row], indent=2))
    data = read_questions(path)
    assert [talk.id for talk in data.conversations] == ["talks-1", "talks-2"]
    assert shape(data.conversations[1]) == ["R[which colour?]", " yes\n"]
    assert source_files(path) == [path, pictures / "pictures" / "red.png"]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ([{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image", "image": None}], "R[and]B"),
        ("first <image>, then <image>", "[first]R[, then]B"),
        ("which?", "RB[which?]"),
        ([{"type": "text", "text": "which?"}], "RB[which?]"),
    ],
)
def test_messages_beside_a_column_of_images(talk, user, expected):
    found = talk(said(user, images=["pictures/red.png", "pictures/blue.png"]))
    assert shape(found) == [expected, "yes"]


def test_image_urls_and_one_picture_in_the_column_image(talk):
    url = [{"type": "image_url", "image_url": {"url": "pictures/red.png"}}, {"type": "text", "text": "x"}]
    assert shape(talk(said(url))) == ["R[x]", "yes"]
    assert shape(talk(said("x", image="pictures/blue.png"))) == ["B[x]", "yes"]
    assert shape(talk(said("what is <image>?"))) == ["what is <image>?", "yes"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (llava("<image> and <image>", image="pictures/red.png"), "there are 2 places for 1 images"),
        (said([{"type": "image"}], images=["pictures/red.png"] * 2), "there are 1 places for 2 images"),
        (llava("<image>\nwhy?"), "an item of type image has no field image"),
        (llava("why?", image="pictures/red.png"), "there are 0 places for 1 images"),
        (said([{"type": "image"}]), "an item of type image has no field image"),
        ({"conversations": [{"from": ["x"], "value": "a"}]}, "a turn is from"),
        ({"conversations": "hello"}, "conversations is not a list of turns {from, value}"),
        (said("x", answer="B"), "unknown fields answer; known are messages, id, type"),
        (said("x", tools=[{"name": "grasp"}]), "tools is given, which the chat template does not write"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [1]}]},
            "messages.tool_calls is given, which the chat template does not write",
        ),
    ],
)
def test_what_does_not_fit_is_a_bad_row(pictures, row, reason):
    path = pictures / "talks.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 1: ") as error:
        read_questions(path)
    assert reason in str(error.value)


@pytest.mark.parametrize("name", ["plain.jsonl", "mark.jsonl", "packed.jsonl.gz", "array.json", "lines.json"])
def test_files_of_json(pictures, name):
    rows = [QUESTION | {"images": "pictures/red.png"}, QUESTION]
    lines = "\n\n".join(map(json.dumps, rows)).encode()
    content = {
        "mark.jsonl": b"\xef\xbb\xbf" + lines,
        "packed.jsonl.gz": gzip.compress(lines),
        "array.json": b"\xef\xbb\xbf \n" + json.dumps(rows, indent=1).encode(),
    }
    path = pictures / name
    path.write_bytes(content.get(name, lines))
    items = read_questions(path).items
    last = 2 if name == "array.json" else 3
    assert [item.id for item in items] == [f"{name.split('.')[0]}-{number}" for number in (1, last)]
    assert (items[0].images[0] == RED).all()
    assert source_files(path)[1:] == [pictures / "pictures" / "red.png"]


def test_damaged_files_are_one_line(pictures):
    path = pictures / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(QUESTION).encode() * 90)[:-20])
    with pytest.raises(UserError, match="a.jsonl.gz cannot be read"):
        read_questions(path)
    path = pictures / "a.json"
    path.write_text("[" + json.dumps(QUESTION))
    with pytest.raises(UserError, match="a.json has 1 bad row: line 1: not JSON"):
        read_questions(path)
    path = pictures / "a.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="a.parquet is no table of datasets"):
        read_questions(path)


def table(numbers, **more):
    rows = [QUESTION | {"id": f"q{number}", "images": ["pictures/red.png"]} | more for number in numbers]
    return pa.Table.from_pylist(rows)


def test_shards_are_one_table_in_the_order_of_their_numbers(pictures):
    (pictures / "shards").mkdir()
    for shard in range(12):
        pq.write_table(table([2 * shard, 2 * shard + 1]), pictures / "shards" / f"train-{shard}-of-12.parquet")
    data = read_questions(pictures / "shards")
    assert [item.id for item in data.items] == [f"q{number}" for number in range(24)]
    pq.write_table(table([99]), pictures / "shards" / "test-0-of-1.parquet")
    with pytest.raises(UserError, match=r"2 tables \(test-N-of-N.parquet, train-N-of-N.parquet\); give the files"):
        read_questions(pictures / "shards")


def test_a_saved_dictionary_of_splits_names_them(pictures):
    datasets = pytest.importorskip("datasets")
    splits = {name: datasets.Dataset(table([number], images=[])) for number, name in enumerate(("train", "test"))}
    datasets.DatasetDict(splits).save_to_disk(str(pictures / "saved"))
    with pytest.raises(UserError, match="saved has the splits train, test; name one of them, such as .*saved/train"):
        read_questions(pictures / "saved")
    assert [item.id for item in read_questions(pictures / "saved" / "test").items] == ["q1"]


def test_a_damaged_picture_in_a_table_is_a_bad_row_and_not_the_end(pictures):
    datasets = pytest.importorskip("datasets")
    whole = (pictures / "pictures" / "red.png").read_bytes()
    images = [[{"bytes": data, "path": None}] for data in (whole, whole[:40], whole)]
    rows = {name: [value] * 3 for name, value in QUESTION.items()} | {"images": images}
    features = datasets.Dataset.from_dict({name: rows[name] for name in QUESTION}).features
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features | {"images": [datasets.Image()]}))
    made.to_parquet(str(pictures / "rows.parquet"))
    made.save_to_disk(str(pictures / "saved"))
    for name in ("rows.parquet", "saved"):
        data = read_questions(pictures / name, skip_bad=True)
        assert [item.id for item in data.items] == ["table-1", "table-3"] and data.bad_rows[0].line == 2


def test_open_questions_are_known_by_their_field_in_every_kind_of_source(pictures):
    ordering = QUESTION | {"reward_type": "ordering", "answer": ["open", "grasp"], "category": "planning"}
    wanted = QUESTION | {"reward_type": "open", "answer": "a text"}
    for row, is_open in ((ordering, False), (wanted, True)):
        path = pictures / "a.jsonl"
        path.write_text(json.dumps(row) + "\n")
        pq.write_table(pa.Table.from_pylist([row]), pictures / "a.parquet")
        (pictures / "a.json").write_text(json.dumps([row]))
        found = [has_open_questions(pictures / name) for name in ("a.jsonl", "a.parquet", "a.json")]
        assert found == [is_open] * 3
    assert not has_open_questions(pictures / "pictures" / "red.png")
