"""The errors that docs/troubleshooting.md shows are those that its commands meet."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from rl_lab import run
from rl_lab.common.errors import run_command
from rl_lab.stages import preflight

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = {
    "setup.sh": ("has another Python than 3.11 to 3.13", "already holds the"),
    "rl_lab/doctor.py": ("rendering fails: ",),
    "rl_lab/workers/connection.py": ("Ray does not start", "asks for its token"),
    "rl_lab/stages/needs.py": (" needs at least ",),
}
"""What the page quotes without a command that meets it, and where that is said."""
SHOWN = re.findall(r"^```console\n\$ python -m rl_lab\.run (.*)\n(error: .*)\n```$", PAGE, re.M)


@pytest.mark.parametrize(("command", "said"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_command_of_the_page_meets_the_error_that_it_shows(command, said, tmp_path, monkeypatch, capsys):
    if "gpu" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "")  # --address sets it
    monkeypatch.setattr(preflight, "has_vllm", lambda: False)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: run.main(shlex.split(command)))
    assert exit_.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_the_page_is_complete_and_what_else_it_quotes_is_said():
    assert len(SHOWN) == PAGE.count("```console") == 19
    numbers = [int(number) for number in re.findall(r"^\*\*(\d+)\. ", PAGE, re.M)]
    assert numbers == list(range(1, 26))
    for source, texts in QUOTED.items():
        assert all(text in PAGE and text in (ROOT / source).read_text() for text in texts), source
