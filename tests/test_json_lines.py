"""Files of JSON lines survive what happens to the processes that append to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.common.files import append_json_line, read_json_lines


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
