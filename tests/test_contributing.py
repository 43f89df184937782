"""What CONTRIBUTING.md says to add is added, all of it in one copy of the sources, and its commands run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("rl_lab", "envs", "algos", "rewards", "experiments", "tests", "pyproject.toml")
SECTIONS = dict(re.findall(r"^### (.*)\n((?:(?!^###? ).*\n)*)", (ROOT / "CONTRIBUTING.md").read_text(), re.M))
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.M | re.S)


def add(folder: Path, kind: str, place: str, text: str) -> None:
    """Write a new file, or change one as a diff says; its context must be there once."""
    path = folder / place
    if kind != "diff":
        assert not path.exists(), f"{place} exists"
        path.write_text(text)
        return
    lines = text.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    found = path.read_text()
    assert found.count(before) == 1, f"{place} has {found.count(before)} times: {before}"
    path.write_text(found.replace(before, after))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """The sources with everything that CONTRIBUTING.md adds."""
    folder = tmp_path_factory.mktemp("extended")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for kind, place, text in (block for section in SECTIONS.values() for block in BLOCK.findall(section)):
        if kind != "console":
            add(folder, kind, place, text)
    return folder


CARRY_OUT = """
import json, os, runpy, shlex, sys
import pytest, rl_lab.check, rl_lab.run  # what every command would else import anew


def carry_out(command, path):
    if os.fork():
        return os.wait()
    printed = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.dup2(printed, 1), os.dup2(printed, 2)
    words = shlex.split(command)
    if words[0] != "python":
        os.execvp(words[0], words)
    sys.path[0], sys.argv = "", words[1:]
    if words[1] == "-m":
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[1], run_name="__main__")
    sys.exit()


for number, commands in enumerate(json.load(sys.stdin)):
    if number > 1:
        os.wait()
    if not os.fork():
        for command in commands:
            carry_out(*command)
        os._exit(0)
os.wait(), os.wait()
"""
"""Lists of commands, two at a time on two cores: each command in a fork that writes what it prints into a file."""
LAYERS = "python -m pytest -q -p no:cacheprovider tests/test_architecture.py -k 'arrows or layer or itself'"


@pytest.fixture(scope="module")
def printed(extended):
    """What is expected of each example's commands, and what they print; that of LAYERS under its own name."""
    consoles = {
        name: "".join(block for kind, _, block in BLOCK.findall(text) if kind == "console")
        for name, text in SECTIONS.items()
    } | {LAYERS: f"$ {LAYERS}\n"}
    found = {name: re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M) for name, text in consoles.items()}
    files = {command: extended / f"printed-{i}" for i, (command, _) in enumerate(sum(found.values(), []))}
    lists = json.dumps([[(command, str(files[command])) for command, _ in commands] for commands in found.values()])
    environment = os.environ | {"PYTHONPATH": str(extended), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-c", CARRY_OUT]
    subprocess.run(command, cwd=extended, env=environment, input=lists, text=True, timeout=600, check=True)
    return {name: [(said, files[command].read_text()) for command, said in found[name]] for name in found}


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_works_as_it_stands(printed, section):
    assert printed[section]
    for expected, found in printed[section]:
        for line in expected.splitlines():
            assert line in found


def test_every_row_of_the_table_has_an_example():
    table = re.findall(r"^\| \[(.*?)\]", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert sorted(name.lower() for name in table) == sorted(re.sub(r"^an? ", "", name.lower()) for name in SECTIONS)


def test_the_extended_sources_keep_the_layers(printed):
    [(_, found)] = printed[LAYERS]
    assert re.fullmatch(r"\d+ passed, \d+ deselected.*", found.splitlines()[-1])


def test_the_extended_sources_keep_the_style(extended):
    pytest.importorskip("ruff", reason="ruff comes with ./setup.sh dev")
    command = [sys.executable, "-m", "ruff", "check", "rl_lab", "envs", "algos", "rewards"]
    assert "All checks passed" in subprocess.run(command, cwd=extended, text=True, capture_output=True).stdout
