"""Every damaged file is refused in one line by every command that reads it, and nothing is written.

What a kind of damage may do instead (a key that has a default, a value that is odd but right) stands beside its file in
`instances.py`.
"""

import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.damage import damages, spread
from tests.faults.damage_kinds import Damage
from tests.faults.forks import ACCEPTED, LATE, Forks, Outcome
from tests.faults.instances import INSTANCES, Reading, copy

EACH = 4
"""Damages of a file that each of its commands meets in the default run."""
SHOWN = 12
ONLY_RUNNING_FINDS = ("bad code",)
TOO_SHORT = {".", "run", "sft"}
"""Folders whose names stand in any output."""


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of an instance, built once."""
    folders: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("valid") / "files"
            folders[name].mkdir()
            INSTANCES[name].build(folders[name])
        return folders[name]

    return build


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    found = {path: path.lstat() for path in folder.rglob("*") if not path.is_dir()}
    return {str(path.relative_to(folder)): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def trouble(reading: Reading, damage: Damage, outcome: Outcome, written: set[str]) -> str | None:
    """What is wrong with how a command ended; None if nothing is."""
    said = outcome.out + outcome.err
    path = Path(reading.file)
    is_named = any(name in said for name in {path.stem, str(path.parent), *reading.names} - TOO_SHORT)
    if "Traceback" in outcome.err:
        return "a traceback"
    if outcome.code == LATE:
        return "did not end in time"
    if outcome.code in (0, ACCEPTED):
        is_told = reading.leaves_out and is_named
        return None if is_told or damage.kind in reading.accepts else "accepted in silence"
    if outcome.code != 2 and not (outcome.code == 1 and damage.kind in ONLY_RUNNING_FINDS):
        return f"exit code {outcome.code}"
    if len([line for line in outcome.err.splitlines() if not line.startswith("warning: ")]) > 3:
        return "more than three lines"
    if not is_named:
        return "names no file"
    return f"wrote {', '.join(sorted(written))}" if written else None


def meet(forks: Forks, built: Path, folder: Path, reading: Reading, command: str, damage: Damage) -> str | None:
    """Run one command on one damaged file; what is wrong with how it ended, with all that it takes to see it again."""
    here = copy(built, folder)
    damage.apply(here / reading.file)
    before = tree(here)
    outcome = forks.run(here, *shlex.split(command))
    after = tree(here)
    written = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    wrong = trouble(reading, damage, outcome, written)
    if wrong is None:
        return None
    said = (outcome.out + outcome.err).strip()[-1500:]
    return f"{wrong}: python -m rl_lab.{command}\n  {reading.file}, {damage} (exit code {outcome.code})\n  {said}"


def check(forks: Forks, built: Path, folder: Path, reading: Reading, count: int | None) -> tuple[int, list[str]]:
    """How many combinations of damage and command there were, and those that ended wrongly."""
    every = damages(built / reading.file, reading.form)
    wrong, combinations = [], 0
    for command in reading.commands:
        salted = spread(every, count or len(every), zlib.crc32(command.encode()))
        for damage in salted:
            found = meet(forks, built, folder / str(combinations), reading, command, damage)
            combinations += 1
            wrong += [found] if found else []
    return combinations, wrong


CASES = [
    pytest.param(name, reading, id=f"{name}: {Path(reading.file).name}")
    for name, instance in INSTANCES.items()
    for reading in instance.readings
]


@pytest.mark.parametrize(("name", "reading"), CASES)
def test_a_damaged_file_is_one_line(forks, built, tmp_path, name, reading):
    combinations, wrong = check(forks, built(name), tmp_path, reading, EACH)
    assert not wrong, f"{len(wrong)} of {combinations}:\n\n" + "\n\n".join(wrong[:SHOWN])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reading"), CASES)
def test_every_damage_of_every_file_is_one_line(forks, built, tmp_path, name, reading):
    combinations, wrong = check(forks, built(name), tmp_path, reading, None)
    assert not wrong, f"{len(wrong)} of {combinations}:\n\n" + "\n\n".join(wrong[:SHOWN])


def test_a_good_file_is_taken(forks, built, tmp_path):
    """Else every damage would be refused for another reason."""
    wrong = []
    for name, instance in INSTANCES.items():
        for number, command in enumerate(dict.fromkeys(c for r in instance.readings for c in r.commands)):
            outcome = forks.run(copy(built(name), tmp_path / f"{name} {number}"), *shlex.split(command))
            if outcome.code not in (0, ACCEPTED):
                wrong.append(f"{name}: {command}: {outcome.code}\n{outcome.err}")
    assert not wrong, "\n".join(wrong)
