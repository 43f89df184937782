"""What joint training leaves of its examinations, both as JSON lines in an arm's folder."""

from __future__ import annotations

from dataclasses import dataclass

EXAMS_FILE = "exams.jsonl"
"""Both skills over time: turn, version, batches of GRPO, steps of RPRO, scores of every question and episode."""

GUARD_FILE = "guard.jsonl"
"""What the guard found and did, a `GuardEvent` a line."""


@dataclass(frozen=True)
class GuardEvent:
    """What the guard found and did; see `rl_lab.training.guard`."""

    turn: int
    skill: str
    objective: str
    """The one blamed: the suspect, or the skill's own."""
    action: str
    """lower, freeze, stop, roll_back; none: nothing is done about it."""
    difference: float
    """Of the skill's mean score, to the examinations that it is held against."""
    bound: float
    """One-sided upper bound of the difference."""
    n: int
    """Questions, or episodes, of the difference."""
    since: int
    """Turn of the newest examination that it is held against."""
    given_back: float
    """Mean score that the skill gets back without the suspect's moves."""
    text: str
