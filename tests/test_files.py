"""Files: listed through links, appended to as JSON lines, read whole or refused in one line."""

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.common.errors import UserError
from rl_lab.common.files import append_json_line, files_below, read_json_lines
from rl_lab.common.reading import fit, parse_json, read_as, read_object, read_text
from rl_lab.graph.nodes import recording_digest
from tests.support.refusals import refusal


def names(folder):
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


@pytest.fixture
def tree(tmp_path):
    """Two files in a folder of which a part lies elsewhere."""
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "more").mkdir(parents=True)
    (tmp_path / "here" / "b.txt").write_text("b")
    (tmp_path / "there" / "more" / "a.txt").write_text("a")
    (tmp_path / "here" / "away").symlink_to(tmp_path / "there")
    return tmp_path / "here"


def test_linked_folders_are_followed_and_enter_the_digest(tree, tmp_path):
    assert names(tree) == ["away/more/a.txt", "b.txt"]
    before = recording_digest(tree)
    (tmp_path / "there" / "more" / "a.txt").write_text("changed")
    assert recording_digest(tree) != before


def test_cycles_end_and_nothing_is_listed_twice(tree, tmp_path):
    (tree / "again").symlink_to(tree)
    (tree / "deep" / "up").symlink_to(tmp_path / "here")
    (tmp_path / "there" / "back").symlink_to(tree)
    (tree / "a-second-way").symlink_to(tmp_path / "there")
    (tree / "gone").symlink_to(tmp_path / "nowhere")
    assert names(tree) == ["a-second-way/more/a.txt", "b.txt"]


def test_a_folder_of_its_own_comes_before_a_link_to_it(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "x.txt").write_text("x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "z")
    assert names(tmp_path) == ["z/x.txt"]


def test_a_torn_last_line_is_ignored_and_the_next_append_replaces_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 1}]
    append_json_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@given(st.integers(0, 10_000))
def test_appending_mends_a_tear_of_any_length(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + "x" * length)
    append_json_line(path, {"step": 2})
    assert [record["step"] for record in read_json_lines(path)] == [1, 2]


@pytest.mark.parametrize("before", ["", '{"step": 1}\n'])
def test_a_last_line_that_never_was_json_is_no_tear(tmp_path, before):
    path = tmp_path / "metrics.jsonl"
    path.write_text(before + "SQLite format 3\0")
    with pytest.raises(ValueError, match=f"line {1 + bool(before)} is no beginning of a JSON object"):
        read_json_lines(path)


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not a JSON object"):
        read_json_lines(path)


@dataclass
class Settings:
    steps: int
    rate: float | None = None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"steps": 1, "speed": 2}, "unknown key 'speed'"),
        ({"steps": "1"}, "steps: Input should be a valid integer"),
        ({"steps": 1, "rate": float("nan")}, "rate is not a finite number"),
        ({"steps": 1, "rate": 10**400}, "rate is not a finite number"),
        ({}, "steps: Field required"),
        ([1], "Input should be an object"),
    ],
)
def test_content_that_does_not_fit_is_refused_with_its_key(content, said):
    line = refusal(fit, content, Settings, "settings.json")
    assert re.search("^settings.json: ", line) and said in line


def test_content_that_fits_becomes_the_object():
    assert fit({"steps": 1, "rate": 2}, Settings, "settings.json") == Settings(1, 2.0)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 6000, b"\xff\xfe\x00"])
def test_text_that_is_no_json_is_refused_in_one_line(text):
    assert re.search("^line 3: ", refusal(parse_json, text, "line 3"))


def test_a_number_of_thousands_of_digits_is_said_in_our_words():
    with pytest.raises(UserError, match="line 3: a number of thousands of digits") as error:
        parse_json("9" * 5000, "line 3")
    assert "sys.set_int" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x80")
    (tmp_path / "list.json").write_text("[]")
    for name, said in {
        "absent.json": "is missing",
        "bytes.json": "is not text in UTF-8",
        "list.json": "found list",
    }.items():
        line = refusal(read_object, tmp_path / name)
        assert re.search(name, line) and said in line


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "settings.json"
    path.write_bytes(b'\xef\xbb\xbf{"steps": 3}')
    assert read_text(path) == '{"steps": 3}'
    assert read_as(path, Settings) == Settings(3)
