"""The detectors of reward hacking, on how one training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from algos.alarms import disagreement_alarm, dominance_alarm, format_alarm, length_alarm, proxy_alarm, variance_alarm


@dataclass(frozen=True)
class Course:
    """Series of one training, a value a step; [] where the run did not log it."""

    reward: Sequence[float]
    """What was trained on."""
    truth_high: float | None
    """Upper end of the 95 % interval of the held-out truth's paired change; None without two examinations."""
    length: Sequence[float] = ()
    """Tokens of an answer."""
    format: Sequence[float] = ()
    """Share of answers in the asked format."""
    spread: Sequence[float] = ()
    """Standard deviation of rewards in a group, mean over groups."""
    disagreement: Sequence[float] = ()
    """Of an ensemble of reward models."""
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Rewards by part of the answers of the last steps."""


def course_alarms(course: Course, weights: Mapping[str, float]) -> list[str]:
    """What the detectors say about a training whose reward has these weights."""
    on_truth = []
    if course.truth_high is not None:
        on_truth = [proxy_alarm(course.reward, course.truth_high), length_alarm(course.length, course.truth_high)]
    found = [
        *on_truth,
        dominance_alarm(course.parts, weights),
        format_alarm(course.format),
        variance_alarm(course.spread, course.reward),
        disagreement_alarm(course.disagreement),
    ]
    return [text for text in found if text is not None]
