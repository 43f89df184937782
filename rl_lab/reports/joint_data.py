"""What an arm of joint training left in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rl_lab.files import Record, read_json_lines

FOLDER = "joint"
"""Folder of a run with the output of every arm."""
SKILLS = ("language", "actions")


@dataclass(frozen=True)
class Arm:
    """One arm of a joint run."""

    node: str
    name: str
    folder: Path
    exams: list[Record] = field(default_factory=list)
    """Lines of exams.jsonl."""
    events: list[Record] = field(default_factory=list)
    """What the guard did."""
    lines: list[Record] = field(default_factory=list)
    """Metrics of its turns."""


def read_arm(node: str, name: str, folder: Path, metrics: Sequence[Record]) -> Arm:
    """The files of an arm, as far as they are there; ValueError or KeyError for one that is not what it should be."""
    exams = read_json_lines(folder / "exams.jsonl", missing_ok=True)
    for exam in exams:
        assert_exam(exam)
    events = read_json_lines(folder / "guard.jsonl", missing_ok=True)
    lines = [line for line in metrics if line.get("node") == node and "alarm" not in line]
    return Arm(node, name, folder, exams, events, lines)


def assert_exam(exam: Record) -> None:
    """ValueError for a line without the scores of both skills."""
    if not {"turn", "scores"} <= exam.keys() or set(exam["scores"]) != set(SKILLS):
        raise ValueError(f"a line has no scores of {' and '.join(SKILLS)}")
