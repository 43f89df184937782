"""What may be wrong with an episode, named by episode and frame; nothing is repaired and nothing is dropped unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from envs.commands import GRIPPER_OVERSHOOT, CommandError, check_commands
from envs.se3 import split_arms
from envs.types import ARMS, CAMERAS, EE_DIM, Episode, PreferencePair, Segment
from rl_lab.errors import UserError
from rl_lab.formats.labels import labels_of

QUAT_TOLERANCE = 1e-2
"""Largest |norm - 1| of a quaternion; files with 32-bit floats stay far below."""
GRIPPER_TOLERANCE = 0.02
"""How far a measured gripper may lie outside 0..1."""
FASTEST_HZ = 10_000
START_TOLERANCE = 1e-6
"""Largest difference between the start poses of a pair; they come from one simulator state."""


@dataclass(frozen=True)
class Problem:
    """One reason why an episode cannot be used."""

    episode: str
    """File or name of the episode."""
    frame: int | None
    """First frame concerned; None if the episode as a whole is."""
    text: str

    def __str__(self) -> str:
        where = "" if self.frame is None else f", frame {self.frame}"
        return f"{self.episode}{where}: {self.text}"


class BrokenEpisodeError(UserError):
    """An episode with problems; the message names the first and counts the others."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}; mend the file, or skip broken episodes with --skip-broken")


def command_problems(name: str, label: str, ee: np.ndarray) -> list[Problem]:
    """Problems of commands, `ee` rows [n, 16] as a policy or an expert gave them."""
    found = pose_problems(name, label, ee, GRIPPER_OVERSHOOT)
    if found:
        return found
    try:
        check_commands(ee)
    except CommandError as error:
        return [Problem(name, None, f"{label}: {error}")]
    return []


def pose_problems(name: str, label: str, ee: np.ndarray, tolerance: float = GRIPPER_TOLERANCE) -> list[Problem]:
    """Problems of `ee` rows [n, 16]: values that are not finite, quaternions not of unit norm, odd grippers."""
    if ee.ndim != 2 or ee.shape[1] != EE_DIM:
        return [Problem(name, None, f"{label} has shape {list(ee.shape)}, expected [n, {EE_DIM}]")]
    if ee.dtype.kind not in "fiu":
        return [Problem(name, None, f"{label} is {ee.dtype}, expected numbers")]
    bad = ~np.isfinite(ee).all(axis=1)
    if bad.any():
        return [Problem(name, int(np.argmax(bad)), f"{label} is not finite in {bad.sum()} of {len(ee)} frames")]
    arms = split_arms(ee)
    norms = np.linalg.norm(arms[..., 3:7], axis=-1)
    found = []
    for number, arm in enumerate(ARMS):
        off = ~(np.abs(norms[:, number] - 1) <= QUAT_TOLERANCE)
        if off.any():
            first = int(np.argmax(off))
            text = f"{label} of the {arm} arm has a quaternion of norm {norms[first, number]:.3f}, expected 1"
            found.append(Problem(name, first, f"{text} ({off.sum()} of {len(ee)} frames)"))
        gripper = arms[:, number, 7]
        out = ~((gripper >= -tolerance) & (gripper <= 1 + tolerance))
        if out.any():
            first = int(np.argmax(out))
            text = f"{label} of the {arm} gripper is {gripper[first]:.3f}, expected 0 (closed) to 1 (open)"
            found.append(Problem(name, first, f"{text} ({out.sum()} of {len(ee)} frames)"))
    return found


def episode_problems(name: str, episode: Episode) -> list[Problem]:
    """Everything that is wrong with an episode in memory."""
    found = pose_problems(name, "pose", episode.poses)
    if not np.array_equal(episode.actions, episode.poses[1:], equal_nan=True):  # else it has been said
        found += command_problems(name, "action", episode.actions)
    steps, frames = len(episode.actions), len(episode.frame_steps)
    if steps < 1:
        found.append(Problem(name, None, "has no control steps"))
    if len(episode.poses) != steps + 1 or episode.num_steps != steps:
        text = f"truncated: {len(episode.poses)} poses and {steps} actions for {episode.num_steps} steps"
        found.append(Problem(name, min(len(episode.poses), steps), text))
    found += image_problems(name, "images", episode.images)
    if episode.frame_steps.ndim != 1 or episode.frame_steps.dtype.kind not in "iu":
        text = f"frame steps are {episode.frame_steps.dtype} {list(episode.frame_steps.shape)}, expected whole numbers"
        return [*found, Problem(name, None, f"{text} [n]")]
    if len(episode.images) != frames:
        found.append(Problem(name, min(len(episode.images), frames), f"{len(episode.images)} images, {frames} frames"))
    if frames < 1 or np.any(np.diff(episode.frame_steps) < 1) or np.any(episode.frame_steps < 0):
        found.append(Problem(name, None, "frame steps must be there, not negative and rising"))
    elif episode.frame_steps[-1] > steps:
        found.append(Problem(name, frames - 1, f"has images of step {episode.frame_steps[-1]}, beyond step {steps}"))
    return found + label_problems(name, episode)


def label_problems(name: str, record: Episode | PreferencePair) -> list[Problem]:
    """Problems of labels: no instruction, text that no file can hold, whole numbers beyond 64 bits."""
    found = [] if record.instruction.strip() else [Problem(name, None, "has no instruction")]
    for label, value in labels_of(record).items():
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            found.append(Problem(name, None, f"{label} has half a character (a lone surrogate)"))
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            found.append(Problem(name, None, f"{label} is a number of {len(str(value))} digits"))
    return found


def image_problems(name: str, label: str, images: np.ndarray) -> list[Problem]:
    """Problems of views: anything but uint8 [n, 3, S, S, 3]."""
    shape, dtype = tuple(images.shape), getattr(images, "dtype", np.dtype(np.uint8))  # stored ones have a shape only
    if dtype == np.uint8 and len(shape) == 5 and (shape[1], shape[4]) == (len(CAMERAS), 3) and shape[2] == shape[3] > 0:
        return []
    return [Problem(name, None, f"{label} are {dtype} {list(shape)}, expected uint8 [n, {len(CAMERAS)}, S, S, 3]")]


def segment_problems(name: str, segment: Segment) -> list[Problem]:
    """Everything that is wrong with one side of a pair."""
    found = pose_problems(name, "pose", segment.poses) + command_problems(name, "action", segment.actions)
    found += image_problems(name, "images", segment.images)
    steps = len(segment.actions)
    if steps < 1:
        found.append(Problem(name, None, "has no control steps"))
    if len(segment.poses) != steps + 1 or len(segment.images) != steps:
        counts = f"{len(segment.poses)} poses and {len(segment.images)} images"
        frame = min(len(segment.poses), len(segment.images), steps)
        found.append(Problem(name, frame, f"truncated: {counts} for {steps} actions"))
    return found


def pair_problems(name: str, pair: PreferencePair) -> list[Problem]:
    """Everything that is wrong with a preference pair in memory; its sides are called chosen and rejected."""
    found = segment_problems(f"{name}, chosen", pair.winner) + segment_problems(f"{name}, rejected", pair.loser)
    if not found and not np.allclose(pair.winner.poses[0], pair.loser.poses[0], atol=START_TOLERANCE):
        gap = float(np.abs(pair.winner.poses[0] - pair.loser.poses[0]).max())
        found.append(Problem(name, 0, f"chosen and rejected start {gap:.3g} apart, expected one shared state"))
    if pair.before is not None and len(pair.before):
        found += image_problems(name, "frames before it", pair.before)
    return found + label_problems(name, pair)


def check_rate(name: str, hz: float) -> float:
    """A rate in hertz; UserError, in the name of where it stands, for one that is none."""
    if not 0 < hz < FASTEST_HZ:
        raise UserError(f"{name} is {hz:g}; expected frames a second, above 0 and below {FASTEST_HZ}")
    return hz


Report = Callable[[Problem], None]
Record = TypeVar("Record")


def sound_episodes(reads: Iterable[Callable[[], Record]], report: Report | None = None) -> Iterator[Record]:
    """Episodes or pairs in order; the first broken one is raised, or all are reported to `report` and left out."""
    for read in reads:
        try:
            record = read()
        except BrokenEpisodeError as error:
            if report is None:
                raise
            for problem in error.problems:
                report(problem)
        else:
            yield record
