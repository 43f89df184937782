"""YAML that is damaged, hostile or no experiment: one line with its place, at once."""

import time
from pathlib import Path

import pytest

from rl_lab.common.errors import UserError
from rl_lab.common.reading import MAX_CHARACTERS, parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "a: !!int abc": "not of type int",
    "a: !!int ''": "not of type int",
    "a: !!float b": "not of type float",
    "a: !!bool b": "not of type bool",
    "a: !!timestamp b": "the tag !!timestamp",
    "a: !!binary aGk=": "the tag !!binary",
    "a: !!set {b}": "the tag !!set",
    "a: !!python/object:os.system {}": "the tag !!python",
    "a: !!map [1]": "expected a mapping",
    "a: " + "1" * 5000: "an integer of more than 64 bits",
    "a: 1:30": "1:30 is read in base 60 or 8",
    "a: 1:30.5": "1:30.5 is read in base 60 or 8",
    "a: 010": "010 is read in base 60 or 8",
    "a: 0x" + "f" * 50: "an integer of more than 64 bits",
    "a: 1" + ":59" * 3000: "is read in base 60 or 8",
    "a: &a [*a]": "the alias *a stands inside what it repeats",
    "a: &a {b: [*a]}": "the alias *a stands inside what it repeats",
    "a: *b": "undefined alias",
    BOMB: "values, with every alias written out",
    "[" * 100_000: "nested deeper than",
    "{" * 100_000: "nested deeper than",
    "? " * 50_000: "nested deeper than",
    "\n".join(" " * depth + "a:" for depth in range(100)): "line 40: nested deeper than",
    "null: 1": "the key is read as None",
    "on: 1": "the key is read as True",
    "1: 2": "the key is read as 1",
    "? [1]\n: 2": "the key is read as [1]",
    "a: 1\na: 2": "line 2: the key 'a' is there twice",
    'a: "\\udcff"': "half a character",
    'a: "\\0"': "a null byte",
    "a: \x07": "not YAML",
    "a: 1\n---\nb: 1": "another document",
    "x" * (MAX_CHARACTERS + 1): f"more than {MAX_CHARACTERS} characters",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:24]))
def test_yaml_that_cannot_be_meant_is_refused_in_one_line_at_once(text):
    start = time.process_time()
    with pytest.raises(UserError, match="^here") as error:
        parse_yaml(text, "here")
    assert REFUSED[text] in str(error.value) and "\n" not in str(error.value)
    assert time.process_time() - start < 2


def test_aliases_and_merged_mappings_are_read():
    text = "a: &a {x: 1, y: &y [1]}\nb: {<<: *a, x: 2}\nc: [*y, *y]"
    assert parse_yaml(text, "") == {"a": {"x": 1, "y": [1]}, "b": {"x": 2, "y": [1]}, "c": [[1], [1]]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfea: 1", "not text in UTF-8"),
        (b"", "expected keys with values"),
        (b"- 1", "expected keys with values"),
        (b"# \n" * 10**6, "is longer than"),
    ],
)
def test_files_that_are_no_experiment_are_named(tmp_path, content, said):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="file.yaml") as error:
        read_yaml(path)
    assert said in str(error.value)


def test_a_file_without_an_end_is_refused():
    with pytest.raises(UserError, match="/dev/zero is longer than"):
        read_yaml(Path("/dev/zero"))
