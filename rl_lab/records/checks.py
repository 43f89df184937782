"""What may be wrong with an episode, named by episode and frame; nothing is repaired and nothing is dropped unasked.

What libraries raise where a file is damaged becomes a problem of its episode. A set of episodes may have more wrong
though each can be read: units, grippers, the order of quaternions. Videos are H.264 of square frames at an exact rate:
frame i is shown at i / rate seconds.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.commands import GRIPPER_OVERSHOOT, CommandError, check_commands
from envs.se3 import split_arms
from envs.types import ARMS, BIMANUAL, Episode, Layout, PreferencePair, Segment
from rl_lab.common import reading
from rl_lab.common.errors import UserError
from rl_lab.records.labels import labels_of

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


def command_problems(name: str, label: str, commands: np.ndarray, layout: Layout = BIMANUAL) -> list[Problem]:
    """Problems of commands, rows [n, A] as a policy or an expert gave them."""
    if layout.numbers == "ee":
        found = pose_problems(name, label, commands, GRIPPER_OVERSHOOT, layout.action_dim)
    else:
        found = row_problems(name, label, commands, layout.action_dim)
    if found:
        return found
    try:
        check_commands(commands, layout=layout)
    except CommandError as error:
        return [Problem(name, None, f"{label}: {error}")]
    return []


def state_problems(name: str, states: np.ndarray, layout: Layout) -> list[Problem]:
    """Problems of measured states, rows [n, S]; of two arms they are called poses."""
    if layout.numbers == "ee":
        return pose_problems(name, "pose", states, size=layout.state_dim)
    return row_problems(name, "state", states, layout.state_dim)


def row_problems(name: str, label: str, rows: np.ndarray, size: int) -> list[Problem]:
    """Problems of rows [n, size]: anything but finite numbers."""
    if rows.ndim != 2 or rows.shape[1] != size:
        return [Problem(name, None, f"{label} has shape {list(rows.shape)}, expected [n, {size}]")]
    if rows.dtype.kind not in "fiu":
        return [Problem(name, None, f"{label} is {rows.dtype}, expected numbers")]
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        return [Problem(name, int(np.argmax(bad)), f"{label} is not finite in {bad.sum()} of {len(rows)} frames")]
    return []


def arm_names(count: int) -> tuple[str, ...]:
    """What one arm or two are called."""
    return ARMS if count > 1 else ("only",)


def pose_problems(
    name: str, label: str, ee: np.ndarray, tolerance: float = GRIPPER_TOLERANCE, size: int = BIMANUAL.state_dim
) -> list[Problem]:
    """Problems of `ee` rows [n, 8 or 16]: those of any rows, quaternions not of unit norm, odd grippers."""
    found = row_problems(name, label, ee, size)
    if found:
        return found
    arms = split_arms(ee)
    norms = np.linalg.norm(arms[..., 3:7], axis=-1)
    for number, arm in enumerate(arm_names(arms.shape[-2])):
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
    layout = episode.layout
    found = state_problems(name, episode.poses, layout)
    if not np.array_equal(episode.actions, episode.poses[1:], equal_nan=True):  # else it has been said
        found += command_problems(name, "action", episode.actions, layout)
    steps, frames = len(episode.actions), len(episode.frame_steps)
    if steps < 1:
        found.append(Problem(name, None, "has no control steps"))
    if len(episode.poses) != steps + 1 or episode.num_steps != steps:
        text = f"truncated: {len(episode.poses)} poses and {steps} actions for {episode.num_steps} steps"
        found.append(Problem(name, min(len(episode.poses), steps), text))
    found += image_problems(name, "images", episode.images, len(layout.cameras))
    if episode.frame_steps.ndim != 1 or episode.frame_steps.dtype.kind not in "iu":
        text = f"frame steps are {episode.frame_steps.dtype} {list(episode.frame_steps.shape)}, expected whole numbers"
        return [*found, Problem(name, None, f"{text} [n]")]
    if len(episode.images) != frames:
        found.append(Problem(name, min(len(episode.images), frames), f"{len(episode.images)} images, {frames} frames"))
    if frames < 1 or np.any(np.diff(episode.frame_steps) < 1) or np.any(episode.frame_steps < 0):
        found.append(Problem(name, None, "frame steps must be there, not negative and rising"))
    elif episode.frame_steps[-1] > steps:
        found.append(Problem(name, frames - 1, f"has images of step {episode.frame_steps[-1]}, beyond step {steps}"))
    return found + truth_problems(name, episode.truth, frames) + label_problems(name, episode)


def truth_problems(name: str, truth: np.ndarray | None, frames: int) -> list[Problem]:
    """Problems of simulator truth, if there is any: anything but finite numbers [frames, n]."""
    if truth is None:
        return []
    if truth.ndim != 2 or len(truth) != frames or truth.dtype.kind != "f":
        return [Problem(name, None, f"truth is {truth.dtype} {list(truth.shape)}, expected float32 [{frames}, n]")]
    wrong = np.flatnonzero(~np.isfinite(truth).all(axis=1))
    return [Problem(name, int(wrong[0]), "truth is not finite")] if len(wrong) else []


def label_problems(name: str, record: Episode | PreferencePair) -> list[Problem]:
    """Problems of labels: no instruction, text that no file can hold, whole numbers beyond 64 bits."""
    found = [] if record.instruction.strip() else [Problem(name, None, "has no instruction")]
    for label, value in labels_of(record).items():
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            found.append(Problem(name, None, f"{label} has half a character (a lone surrogate)"))
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            found.append(Problem(name, None, f"{label} is a number of {len(str(value))} digits"))
    return found


def image_problems(name: str, label: str, images: np.ndarray, views: int) -> list[Problem]:
    """Problems of pictures: anything but uint8 [n, views, S, S, 3]."""
    shape, dtype = tuple(images.shape), getattr(images, "dtype", np.dtype(np.uint8))  # stored ones have a shape only
    if dtype == np.uint8 and len(shape) == 5 and (shape[1], shape[4]) == (views, 3) and shape[2] == shape[3] > 0:
        return []
    return [Problem(name, None, f"{label} are {dtype} {list(shape)}, expected uint8 [n, {views}, S, S, 3]")]


def segment_problems(name: str, segment: Segment, layout: Layout = BIMANUAL) -> list[Problem]:
    """Everything that is wrong with one side of a pair."""
    found = state_problems(name, segment.poses, layout) + command_problems(name, "action", segment.actions, layout)
    found += image_problems(name, "images", segment.images, len(layout.cameras))
    steps = len(segment.actions)
    if steps < 1:
        found.append(Problem(name, None, "has no control steps"))
    if len(segment.poses) != steps + 1 or len(segment.images) != steps:
        counts = f"{len(segment.poses)} poses and {len(segment.images)} images"
        frame = min(len(segment.poses), len(segment.images), steps)
        found.append(Problem(name, frame, f"truncated: {counts} for {steps} actions"))
    return found + truth_problems(name, segment.truth, steps)


def pair_problems(name: str, pair: PreferencePair) -> list[Problem]:
    """Everything that is wrong with a preference pair in memory; its sides are called chosen and rejected."""
    sides = {"chosen": pair.winner, "rejected": pair.loser}
    found = [one for side, part in sides.items() for one in segment_problems(f"{name}, {side}", part, pair.layout)]
    if not found and not np.allclose(pair.winner.poses[0], pair.loser.poses[0], atol=START_TOLERANCE):
        gap = float(np.abs(pair.winner.poses[0] - pair.loser.poses[0]).max())
        found.append(Problem(name, 0, f"chosen and rejected start {gap:.3g} apart, expected one shared state"))
    if pair.before is not None and len(pair.before):
        found += image_problems(name, "frames before it", pair.before, len(pair.layout.cameras))
    return found + label_problems(name, pair)


def check_rate(name: str, hz: float) -> float:
    """A rate in hertz; UserError, in the name of where it stands, for one that is none."""
    if not 0 < hz < FASTEST_HZ:
        raise UserError(f"{name} is {hz:g}; expected frames a second, above 0 and below {FASTEST_HZ}")
    return hz


OnProblem = Callable[[Problem], None]

Record = TypeVar("Record")


def sound_episodes(reads: Iterable[Callable[[], Record]], report: OnProblem | None = None) -> Iterator[Record]:
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


DAMAGE = (*reading.DAMAGE, pa.ArrowException, av.FFmpegError)


@contextlib.contextmanager
def naming_episode(name: str, frame: int | None = None) -> Iterator[None]:
    """Turn what is raised for damage into a BrokenEpisodeError of this episode."""
    try:
        yield
    except BrokenEpisodeError:
        raise
    except DAMAGE as error:
        text = f"cannot be read, broken or truncated: {' '.join(str(error).split()) or type(error).__name__}"
        raise BrokenEpisodeError([Problem(name, frame, text)]) from error


Kinds = Mapping[str, pa.DataType | None]


def read_columns(path: Path, kinds: Kinds, optional: Kinds = MappingProxyType({})) -> list[dict[str, Any]]:
    """Rows of a Parquet file, its columns as the kinds that are named; null for optional ones that are not there.

    A column of kind None may hold anything, nulls too. UserError, naming the column, where one is missing, holds nulls
    or something else than its kind.
    """
    try:
        there = pq.read_schema(path).names
        wanted = {**kinds, **{name: kind for name, kind in optional.items() if name in there}}
        if missing := kinds.keys() - set(there):
            raise UserError(f"{path} has no column {min(missing)}")
        table = pq.read_table(path, columns=list(wanted), partitioning=None)
        values = {name: table[name] if kind is None else table[name].cast(kind) for name, kind in wanted.items()}
        rows = pa.table(values).to_pylist()  # only here are bytes that are no text found
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}; make it again") from error
    if empty := [name for name, kind in kinds.items() if kind is not None and values[name].null_count]:
        raise UserError(f"{path}: {empty[0]} is null in {values[empty[0]].null_count} rows; make it again")
    return [dict.fromkeys(optional) | row for row in rows]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. UserError for one that is damaged or holds anything but arrays of numbers."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except DAMAGE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read, broken or truncated: {text}; make it again") from error


REACH_M = 5.0
"""No tool of two arms at a table is farther from the origin; numbers in centimetres or millimetres are."""

OPEN = 0.5

NO_ROTATION = 0.95
"""A component of a unit quaternion that is larger leaves a rotation of less than 37 degrees, were it the scalar one."""


class Doubts:
    """Collects what speaks against a set, pose by pose."""

    def __init__(self) -> None:
        self.num_poses = 0
        self.farthest_m = 0.0
        self.widest: dict[str, float] = {}
        self.last_is_scalar: Counter[str] = Counter()

    def add(self, record: Episode | PreferencePair) -> None:
        """Look at the measured poses of an episode, or of both sides of a pair; of other numbers nothing is known."""
        if record.layout.numbers != "ee":
            return
        sides = [record] if isinstance(record, Episode) else [record.winner, record.loser]
        arms = split_arms(np.concatenate([side.poses for side in sides]))
        self.num_poses += len(arms)
        self.farthest_m = max(self.farthest_m, float(np.abs(arms[..., :3]).max()))
        for name, arm in zip(arm_names(arms.shape[1]), arms.swapaxes(0, 1), strict=True):
            self.widest[name] = max(self.widest.get(name, -np.inf), float(arm[:, 7].max()))
            self.last_is_scalar[name] += int((np.abs(arm[:, 6]) > NO_ROTATION).sum())

    def lines(self) -> list[str]:
        """One line for each doubt."""
        if not self.num_poses:
            return []
        found = []
        if self.farthest_m > REACH_M:
            found.append(f"positions reach {self.farthest_m:.4g}; expected metres, at most {REACH_M:g}")
        for arm, widest in self.widest.items():
            count = self.last_is_scalar[arm]
            if widest < OPEN:
                found.append(f"the {arm} gripper never opens (at most {widest:.3g}); expected 1 = open, 0 = closed")
            if count > self.num_poses / 2:
                share = f"{round(100 * count / self.num_poses)} % of the {arm} arm's quaternions"
                found.append(f"{share} turn nothing if their last number is the scalar: are they xyzw? Expected wxyz")
        return found


CODEC, LOSSLESS_CODEC = "libx264", "libx264rgb"

ENCODER_OPTIONS = {"crf": "18", "g": "2", "preset": "veryfast", "threads": "1"}
"""A key frame every second frame, as LeRobot writes them: single frames are found fast."""


def exact_rate(hz: float) -> Fraction:
    """12.5 -> 25/2, 16.67 (250 / 15) -> 50/3."""
    return Fraction(hz).limit_denominator(1000)


class VideoWriter:
    """One video file; frames are appended."""

    def __init__(self, path: Path, hz: float, side: int, lossless: bool = False) -> None:
        self.path = path
        self.num_frames = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rate = exact_rate(hz)
        self._container = av.open(str(path), "w")
        stream: Any = self._container.add_stream(
            LOSSLESS_CODEC if lossless else CODEC,
            rate=self._rate,
            options=ENCODER_OPTIONS | ({"crf": "0"} if lossless else {}),
        )
        stream.width = stream.height = side
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        stream.time_base = 1 / self._rate
        self._stream = stream

    def append(self, image: np.ndarray) -> None:
        """Add one RGB image, uint8 [S, S, 3]."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self.num_frames, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk so far: none before the encoder gives out its first frames."""
        return self.path.stat().st_size if self.path.exists() else 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()


def read_frames(path: Path, start: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
    """Time in seconds and RGB image, uint8 [H, W, 3], of the frames from the last key frame before `start` on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if start > 0 and stream.time_base:
            container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            yield float(frame.time or 0.0), frame.to_ndarray(format="rgb24")
