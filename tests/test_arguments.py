"""What commands take from their command line: odd texts are one line, and nothing that is read is written over."""

import contextlib
import io
import os

import pytest

from rl_lab import bench, correct, data, doctor, pool, report, rescore, run, serve, watch
from rl_lab import eval as evaluate
from rl_lab.common.arguments import as_path, check_output, whole_number
from rl_lab.common.errors import UserError, run_command

COMMANDS = {
    "run": (run.main, ["{}"], ["{}", "--dry-run"], ["--resume", "{}"], ["x.yaml", "{}"]),
    "eval": (evaluate.main, ["{}"], ["x", "{}"], ["x", "--out", "{}"]),
    "report": (report.main, ["{}"], [".", "--against", "{}"]),
    "rescore": (rescore.main, ["{}", "--reward", "x"], [".", "--reward", "{}"], [".", "--reward", "x", "--node", "{}"]),
    "correct": (correct.main, ["{}", "x.yaml", "--out", "c"], ["x", "{}", "--out", "c"], ["x", "y", "--out", "{}"]),
    "data": (data.main, ["inspect", "{}"], ["stats", "{}"], ["validate", "{}"], ["convert", "x", "{}"], ["{}"]),
    "serve": (serve.main, ["{}"], ["x", "--port", "{}"], ["x", "--seed", "{}"]),
    "watch": (watch.main, ["{}"], [".", "--port", "{}"], [".", "--every", "{}"]),
    "doctor": (doctor.main, ["{}"]),
    "pool": (pool.main, ["ls", "{}"], ["show", "{}", "x"], ["html", "{}"], ["export", ".", "{}"], ["why", ".", "{}"]),
    "bench": (bench.main, ["{}"], ["sim", "{}"], ["sim", "seconds={}"]),
}
CASES = [
    (name, tuple(arguments), odd)
    for name, (_, *lines) in COMMANDS.items()
    for arguments in lines
    for odd in ("", "no such", "a\nb", "\udcff", "a" * 300, "/dev/null/x", "folder", "\0", "9" * 400)
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty current directory but for a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(("name", "arguments", "odd"), CASES)
def test_odd_arguments_are_one_line_and_exit_code_2(home, name, arguments, odd):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as end:
        run_command(lambda: COMMANDS[name][0]([argument.format(odd) for argument in arguments]))
    assert end.value.code == 2, error.getvalue()
    assert error.getvalue().startswith("error: ") and error.getvalue().count("\n") == 1
    assert sorted(os.listdir(home)) == ["folder"]


@pytest.mark.parametrize("text", ["", "1.5", "0", "11", "1" * 400, "x", "²", "-1"])
def test_whole_numbers_have_bounds(text):
    with pytest.raises(UserError, match="is not allowed here; give a whole number from 1 to 10"):
        whole_number(1, 10)(text)
    assert whole_number(1, 10)("10") == 10


def test_a_path_has_a_name_that_fits_on_a_line():
    for text in ("", "a\nb", "a\x7f", "b/" + "a" * 256):
        with pytest.raises(UserError, match="the path"):
            as_path(text)


def test_nothing_that_is_read_is_written_over(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "pool.sqlite").write_text("pool")
    os.link(folder / "pool.sqlite", tmp_path / "hard")
    (tmp_path / "soft").symlink_to(folder)
    for target in ("run", "run/pool.sqlite", "run/new", "soft", "soft/new", "other/../run/x"):
        with pytest.raises(UserError, match="is read by the same command"):
            check_output(tmp_path / target, folder)
    with pytest.raises(UserError, match="is read by the same command"):
        check_output(tmp_path / "hard", folder / "pool.sqlite")
    check_output(tmp_path / "new", folder, tmp_path / "missing")
