"""Code of a user's own: found without being run, hashed by content, imported with its neighbours, blamed by line."""

import re
import sys
from pathlib import Path

import pytest

from envs.by_name import DIGESTS, OwnCodeError, OwnName, absolute, blamed, digest, files, find, load, own_names
from envs.options import Options
from tests.support.refusals import refusal


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with a module beside it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_mine.py").write_text("from further_mine import FIVE\n\ndef fail():\n    return 1 / 0\n")
    (tmp_path / "further_mine.py").write_text("FIVE = 5\n")
    (tmp_path / "unused_mine.py").write_text("SIX = 6\n")
    path = tmp_path / "mine.py"
    path.write_text("import beside_mine\n\n\nclass Part:\n    five = beside_mine.FIVE\n    fail = beside_mine.fail\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield path
    for name in [name for name in sys.modules if "_mine" in name]:
        del sys.modules[name]


class Settings(Options):
    part: OwnName = "ours"
    parts: dict[str, OwnName] = {}


def test_a_file_is_imported_once_with_the_modules_beside_it(own):
    part = load("mine.py:Part")
    assert part.five == 5 and load(f"{own}:Part") is part


def test_the_digest_covers_the_modules_that_it_needs_and_not_where_they_lie(own, tmp_path):
    assert [path.name for path in files("mine.py:Part")] == ["mine.py", "beside_mine.py", "further_mine.py"]
    before = digest("mine.py:Part")
    (tmp_path / "unused_mine.py").write_text("SIX = 7\n")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in files("mine.py:Part"):
        (moved / path.name).write_text(path.read_text())
    assert digest("moved/mine.py:Part") == digest("mine.py:Part") == before
    (tmp_path / "further_mine.py").write_text("FIVE = 6\n")
    assert digest("mine.py:Part") != before


def test_a_file_is_read_in_its_own_encoding_and_one_that_is_no_python_is_named(own, tmp_path):
    (tmp_path / "marked_mine.py").write_bytes(b"\xef\xbb\xbfdef f(): ...\n")
    (tmp_path / "latin_mine.py").write_bytes(b'# -*- coding: latin-1 -*-\ndef f(): return "\xe9"\n')
    assert callable(load("marked_mine.py:f")) and load("latin_mine.py:f")() == "\xe9"
    for text in ("def f(:", "def f(): ...\n\0", "x = " + "-" * 100_000 + "1\ndef f(): ..."):
        (tmp_path / "further_mine.py").write_text(text)
        with pytest.raises(ValueError, match=r"'further_mine.py:f': further_mine.py is no Python \(.+\)"):
            find("further_mine.py:f")
        with pytest.raises(ValueError, match=r"^further_mine.py is no Python"):
            files("mine.py:Part")


def test_a_name_that_is_gone_once_the_file_was_run_is_told(own, tmp_path):
    (tmp_path / "gone_mine.py").write_text("if False:\n    def f(): ...\n")
    find("gone_mine.py:f")
    with pytest.raises(OwnCodeError, match="gone_mine.py names f, but has none once it was run"):
        load("gone_mine.py:f")


def test_what_its_code_raises_is_one_line_with_file_and_line(own, tmp_path):
    with pytest.raises(OwnCodeError) as caught, blamed():
        load("mine.py:Part").fail()
    assert str(caught.value) == f"{tmp_path}/beside_mine.py:4: ZeroDivisionError: division by zero"
    (tmp_path / "broken_mine.py").write_text("x = 1\nimport no_such_module\n\ndef f(): ...\n")
    with pytest.raises(OwnCodeError, match=r"broken_mine.py:2: ModuleNotFoundError: No module named"), blamed():
        load("broken_mine.py:f")
    with pytest.raises(KeyError), blamed():  # none of theirs
        raise KeyError("ours")


def test_a_module_beside_it_that_another_hides_is_refused(own, tmp_path):
    (tmp_path / "yaml.py").write_text("X = 1\n")
    (tmp_path / "hidden_mine.py").write_text("import yaml\n\ndef f(): ...\n")
    with pytest.raises(ValueError, match=r"yaml.py is hidden by .*another module yaml; give it another name"):
        load("hidden_mine.py:f")


def test_options_hold_absolute_names_and_dump_their_content_for_hashes(own):
    settings = Settings(part="mine.py:Part", parts={"a": "mine.py:Part", "b": "theirs"})
    assert settings.part == f"{own}:Part" == absolute("mine.py:Part")
    assert settings.model_dump(mode="json") == {"part": f"{own}:Part", "parts": {"a": f"{own}:Part", "b": "theirs"}}
    assert settings.model_dump(context=DIGESTS)["part"] == digest("mine.py:Part")
    assert own_names(settings) == {"part": f"{own}:Part", "parts.a": f"{own}:Part"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("mine", "'mine' names no part; write FILE.py:PART or MODULE:PART"),
        ("mine.py:Prat", "mine.py defines no Prat; did you mean Part?"),
        ("minus.py:Part", "there is no file minus.py"),
        ("no.module:Part", "there is no module no.module; a file is written as FILE.py:PART"),
    ],
)
def test_what_is_not_there_is_said_before_anything_runs(own, source, said):
    assert said in refusal(find, source, by=ValueError)


def test_a_lazy_module_says_what_it_has_to_readers_of_types():
    find("trl.rewards:think_format_reward", "function")


def test_a_name_with_a_type_is_a_definition(own, tmp_path):
    (tmp_path / "typed.py").write_text("LIMIT: int = 3\nLATER: int\n")
    assert find(f"{tmp_path / 'typed.py'}:LIMIT").value == 3
    with pytest.raises(ValueError, match="defines no LATER"):
        find(f"{tmp_path / 'typed.py'}:LATER")


def test_names_taken_apart_or_brought_by_a_star_are_found(own, tmp_path):
    (tmp_path / "parts.py").write_text("first, (second, third) = 1, (2, 3)\n")
    find(f"{tmp_path / 'parts.py'}:first")
    with pytest.raises(ValueError, match="defines no fist"):
        find(f"{tmp_path / 'parts.py'}:fist")
    (tmp_path / "star.py").write_text("from math import *\n")
    find(f"{tmp_path / 'star.py'}:sqrt")


def test_every_kind_has_an_example_that_its_page_names(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    rows = [line for line in Path("docs/own.md").read_text().splitlines() if line.startswith("| ") and ".py:" in line]
    assert len(rows) == 7 and all(find(name) for row in rows for name in re.findall(r"`(examples/\S+)`", row))
