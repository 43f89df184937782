"""docs/own-yaml.md is followed, file by file and command by command."""

import re
from pathlib import Path

from rl_lab import run
from rl_lab.common.errors import UserError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-yaml.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", PAGE, re.M | re.S)


def test_every_step_of_the_page_prints_what_the_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = 0
    for kind, place, text in BLOCKS:
        if kind == "yaml":
            Path(place).write_text(text)
            continue
        command, *expected = text.splitlines()
        words = command.removeprefix("$ python -m rl_lab.run ").split()
        assert words[0] != "$", command
        try:
            assert run.main(words) == 0
        except UserError as error:
            print(f"error: {error}")
        printed = re.sub(r"\b[0-9a-f]{12}\b", "#" * 12, capsys.readouterr().out)
        assert [line for line in expected if line not in printed] == [], printed
        commands += 1
    assert commands == 4
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml"}
