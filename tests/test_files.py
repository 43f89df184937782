"""Files below a folder, through links, each once."""

import pytest

from rl_lab.common.files import files_below
from rl_lab.graph.nodes import recording_digest


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
