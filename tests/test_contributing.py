"""What CONTRIBUTING.md says to add is added, all of it in one copy of the sources, and its commands run."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def run(folder: Path, command: str) -> str:
    """What a command prints."""
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": python, "PYTHONPATH": str(folder), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, text=True, capture_output=True, timeout=300)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def printed(extended):
    """What is expected of each example's commands, and what they print; two examples at a time, on two cores."""

    def carry_out(text: str) -> list[tuple[str, str]]:
        console = "".join(block for kind, _, block in BLOCK.findall(text) if kind == "console")
        commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", console, re.M)
        return [(expected, run(extended, command)) for command, expected in commands]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SECTIONS, pool.map(carry_out, SECTIONS.values()), strict=True))


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_works_as_it_stands(printed, section):
    assert printed[section]
    for expected, found in printed[section]:
        for line in expected.splitlines():
            assert line in found


def test_every_row_of_the_table_has_an_example():
    table = re.findall(r"^\| \[(.*?)\]", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert sorted(name.lower() for name in table) == sorted(re.sub(r"^an? ", "", name.lower()) for name in SECTIONS)


def test_the_extended_sources_keep_the_layers(extended):
    tests = "tests/test_architecture.py -k 'arrows or layer or itself'"
    assert re.fullmatch(r"\d+ passed, \d+ deselected.*", run(extended, f"python -m pytest -q {tests}").splitlines()[-1])


def test_the_extended_sources_keep_the_style(extended):
    pytest.importorskip("ruff", reason="ruff comes with ./setup.sh dev")
    assert "All checks passed" in run(extended, "python -m ruff check rl_lab envs algos rewards")
