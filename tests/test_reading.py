"""Files that may be damaged: the one line that refuses each kind of damage."""

import re
from dataclasses import dataclass

import pytest

from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit, parse_json, read_as, read_object, read_text
from tests.support.refusals import refusal


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
