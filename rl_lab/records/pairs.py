"""Preference pairs as Parquet and video, so that other trainers and players read them. Version 3 of the layout:

    pairs_info.json                 format, version, rate, image side, cameras, count; layout, but of two arms as poses
    pairs.parquet                   one row a pair, in order
    data/file-000.parquet           one row a state of a segment; the chosen segment of a pair, then the rejected one
    videos/CAMERA/file-000.mp4      one frame a row that has an action, in order; after each pair those before it

`chosen` is the continuation to prefer (the correction), `rejected` the one to avoid (the failure); both begin in the
same simulator state. Columns of pairs.parquet: `pair` 0, 1, ...; `task`, `variant`, `seed`, `instruction`;
`start_step`, `trigger_step`, `trigger`, `rollback_steps`, `corrector`, `start_digest`, `weight_version`, `origin`,
`reward`, `reward_gap`, `restore_method`, `exact_restore`, `restore_error`, `control_hz`, `simulation`,
`correction_limit` as in `envs.types.PreferencePair` (older sets lack the last three); `file` (number of its data and
video files); for each side `SIDE_from_row`, `SIDE_to_row` (rows of the data file, the end excluded) and
`SIDE_from_frame` (frame i of a video is shown at i / hz seconds). `before_frames` frames from `before_from_frame` on
are the policy's own before the shared state, to which a memory looks back; null without one.
Columns of the data: `pair`, `side`, `step`, `observation.state` and `action` (64-bit floats, [16]: xyz in metres, wxyz,
gripper 1 = open .. 0, of the left and the right arm; of another layout as many as that says, see `envs.types.Layout`),
and `truth` of the simulator where it was recorded (32-bit). All pairs of a set have one layout.
A segment of T actions has T + 1 rows; the last has no action and no truth.
Actions are the commands as they were given, which is what preference learning compares: a policy's samples, whose
grippers may leave 0..1 a little. What a robot was told is `envs.commands.executed` of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.types import BIMANUAL, NO_FRAMES, Layout, Numbers, PreferencePair, Segment
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_folder
from rl_lab.common.reading import read_as, read_object
from rl_lab.records.checks import (
    BrokenEpisodeError,
    Problem,
    VideoWriter,
    check_rate,
    naming_episode,
    pair_problems,
    read_columns,
    read_frames,
)
from rl_lab.records.labels import label_names, labels_of, read_labels

FORMAT, VERSION = "rl_lab.pairs", 3

INFO_FILE, PAIRS_FILE = "pairs_info.json", "pairs.parquet"

DATA_PATH, VIDEO_PATH = "data/file-{file:03d}.parquet", "videos/{camera}/file-{file:03d}.mp4"

SIDES = {"chosen": "winner", "rejected": "loser"}
"""Names of the layout, and of the lab's own records."""

FILE_STATES = 20_000
"""States after which the next pair begins new files."""

LATER, TRUTH = dict.fromkeys(("control_hz", "simulation", "correction_limit")), "truth"
"""Columns that older sets lack."""


def _vectors(rows: list[list[float] | None], size: int) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float64(), size))


def _data(pair: int, side: str, segment: Segment, layout: Layout) -> pa.Table:
    """The rows of one segment."""
    count = len(segment.poses)
    actions = [*segment.actions.tolist(), None]
    truth = [None] * count if segment.truth is None else [*segment.truth.tolist(), None]
    return pa.table(
        {
            "pair": pa.array([pair] * count, pa.int64()),
            "side": pa.array([side] * count, pa.string()),
            "step": pa.array(range(count), pa.int64()),
            "observation.state": _vectors(segment.poses.tolist(), layout.state_dim),
            "action": _vectors(actions, layout.action_dim),
            TRUTH: pa.array(truth, pa.list_(pa.float32())),
        }
    )


class _Writer:
    """Fills a folder, pair by pair."""

    def __init__(self, folder: Path, hz: float, lossless: bool) -> None:
        self.folder, self.hz, self.lossless = folder, hz, lossless
        self.side = self.file = self.num_rows = self.num_frames = 0
        self.layout = BIMANUAL
        self.rows: list[dict[str, Any]] = []
        self.tables: list[pa.Table] = []
        self.videos: list[VideoWriter] = []
        self.open_files = ExitStack()

    def add(self, pair: PreferencePair) -> None:
        """Append one pair."""
        number = len(self.rows)
        self.layout = self.layout if self.rows else pair.layout
        if pair.layout != self.layout:
            raise UserError(f"pair {number} has {pair.layout}; all must be of one layout ({self.layout})")
        problems = pair_problems(f"pair {number}", pair)
        if problems:
            raise BrokenEpisodeError(problems)
        side = pair.winner.images.shape[-2]
        self.side = self.side or side
        if side != self.side or pair.loser.images.shape[-2] != self.side or side % 2:
            raise UserError(f"pair {number} has images of side {side}; all must be of one even side ({self.side})")
        if self.num_rows > FILE_STATES:
            self.close_files()
        row: dict[str, Any] = {"pair": number} | labels_of(pair) | {"file": self.file}
        row.pop("layout", None)
        for name, ours in SIDES.items():
            segment = getattr(pair, ours)
            row |= {f"{name}_from_row": self.num_rows, f"{name}_from_frame": self.num_frames}
            self.tables.append(_data(number, name, segment, self.layout))
            self.num_rows += len(segment.poses)
            row[f"{name}_to_row"] = self.num_rows
            self.append_frames(segment.images)
        seen = pair.before
        row |= {"before_from_frame": self.num_frames, "before_frames": None if seen is None else len(seen)}
        if seen is not None:
            self.append_frames(seen)
        self.rows.append(row)

    def append_frames(self, images: np.ndarray) -> None:
        """Add views, uint8 [T, V, S, S, 3]."""
        if not self.videos:
            paths = [self.folder / VIDEO_PATH.format(camera=name, file=self.file) for name in self.layout.cameras]
            writers = [VideoWriter(path, self.hz, self.side, lossless=self.lossless) for path in paths]
            self.videos = [self.open_files.enter_context(writer) for writer in writers]
        for camera, video in enumerate(self.videos):
            for image in images[:, camera]:
                video.append(image)
        self.num_frames += len(images)

    def close_files(self) -> None:
        """Finish the current data file and its videos."""
        self.open_files.close()
        if self.tables:
            path = self.folder / DATA_PATH.format(file=self.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(self.tables), path)
            self.file += 1
        self.tables, self.videos, self.num_rows, self.num_frames = [], [], 0, 0

    def finish(self) -> None:
        """Write what is left and the tables about the whole."""
        self.close_files()
        if not self.rows:
            raise UserError("there are no pairs to write")
        pq.write_table(pa.Table.from_pylist(self.rows), self.folder / PAIRS_FILE)
        about = {"format": FORMAT, "version": VERSION, "hz": self.hz, "image_size": self.side}
        about |= {"lossless": self.lossless, "cameras": list(self.layout.cameras), "pairs": len(self.rows)}
        if self.layout != BIMANUAL:
            about["layout"] = {name: getattr(self.layout, name) for name in ("numbers", "action_dim", "state_dim")}
        (self.folder / INFO_FILE).write_text(json.dumps(about, indent=1) + "\n")


def write_pairs_layout(folder: Path, pairs: Iterable[PreferencePair], hz: float, *, lossless: bool = False) -> int:
    """Write the layout, whole or not at all; the number of pairs.

    Videos are H.264 that any player shows, or with `lossless` H.264 in RGB, which gives back the very pixels but which
    browsers do not play. BrokenEpisodeError for a pair that is not sound.
    """
    count = 0

    def fill(partial: Path) -> None:
        nonlocal count
        writer = _Writer(partial, hz, lossless)
        with writer.open_files:
            for pair in pairs:
                writer.add(pair)
            writer.finish()
        count = len(writer.rows)

    write_folder(folder, fill)
    return count


PairRow = dict[str, Any]

Cameras = tuple[str, ...]

LABELS = [name for name in label_names(PreferencePair) if name not in (*LATER, "layout")]

NUMBERS = ["pair", "file", "before_from_frame"]

NUMBERS += [f"{side}_{what}" for side in SIDES for what in ("from_row", "to_row", "from_frame")]


@dataclass(frozen=True)
class SetLayout:
    """Of `envs.types.Layout` what the list of cameras does not say."""

    numbers: Numbers
    action_dim: int
    state_dim: int


@dataclass(frozen=True)
class PairsInfo:
    """pairs_info.json."""

    format: str
    version: int
    hz: float
    image_size: int
    lossless: bool
    cameras: list[str]
    pairs: int
    layout: SetLayout | None = None
    """None: two arms as poses, RoboTwin's cameras."""


def read_info(folder: Path) -> tuple[PairsInfo, Layout]:
    """pairs_info.json, and what it says of numbers and cameras; UserError if it is not of this layout and version."""
    path = folder / INFO_FILE
    found = read_object(path)
    kind, version = found.get("format"), found.get("version")
    if (kind, version) != (FORMAT, VERSION):
        raise UserError(
            f"{folder} is {str(kind)[:40]} version {str(version)[:40]}; this lab reads {FORMAT} version {VERSION}"
        )
    info = read_as(path, PairsInfo)
    check_rate(f"{path}: hz", info.hz)
    if info.layout is None and info.cameras != list(BIMANUAL.cameras):
        raise UserError(f"{path}: cameras are {', '.join(info.cameras)}; expected {', '.join(BIMANUAL.cameras)}")
    try:
        return info, BIMANUAL if info.layout is None else Layout(**vars(info.layout), cameras=tuple(info.cameras))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _rows(folder: Path, info: PairsInfo) -> list[PairRow]:
    path = folder / PAIRS_FILE
    kinds = dict.fromkeys(NUMBERS, pa.int64()) | dict.fromkeys([*LABELS, "before_frames"])
    rows = read_columns(path, kinds, optional=LATER)
    if len(rows) != info.pairs:
        raise UserError(f"{path} has {len(rows)} rows, but {INFO_FILE} says {info.pairs} pairs; make the set again")
    return rows


def _frames(path: Path, first: int, count: int, hz: float, name: str) -> np.ndarray:
    """`count` frames from number `first` on, uint8 [count, S, S, 3]."""
    images: list[np.ndarray] = []
    for time, image in read_frames(path, first / hz):
        if first <= round(time * hz) < first + count:
            images.append(image)
        if len(images) == count:
            return np.stack(images)
    text = f"truncated: {path} ends after {len(images)} of its {count} frames"
    raise BrokenEpisodeError([Problem(name, len(images), text)])


def _segment(folder: Path, hz: float, cameras: Cameras, row: PairRow, side: str, name: str) -> Segment:
    start, stop = row[f"{side}_from_row"], row[f"{side}_to_row"]
    table = pq.read_table(folder / DATA_PATH.format(file=row["file"]), partitioning=None)[start:stop]
    data = table.to_pydict()
    name = f"{name}, {side}"
    if table.num_rows != stop - start or data["step"] != list(range(stop - start)):
        raise BrokenEpisodeError([Problem(name, table.num_rows, f"truncated: {table.num_rows} of {stop - start} rows")])
    if set(data["pair"]) != {row["pair"]} or set(data["side"]) != {side}:
        raise BrokenEpisodeError([Problem(name, None, f"rows {start} to {stop} are of another segment")])
    gaps = [step for step, action in enumerate(data["action"][:-1]) if action is None]
    if gaps or data["action"][-1] is not None:
        text = "an action is missing" if gaps else "the last state must have no action"
        raise BrokenEpisodeError([Problem(name, gaps[0] if gaps else stop - start - 1, text)])
    truth = data.get(TRUTH)
    return Segment(
        poses=np.array(data["observation.state"], dtype=np.float64),
        actions=np.array(data["action"][:-1], dtype=np.float64),
        images=_views(folder, hz, cameras, row, row[f"{side}_from_frame"], stop - start - 1, name),
        truth=np.array(truth[:-1], dtype=np.float32) if truth and truth[0] is not None else None,
    )


def _views(folder: Path, hz: float, cameras: Cameras, row: PairRow, first: int, count: int, name: str) -> np.ndarray:
    """Frames of all cameras, uint8 [count, V, S, S, 3]."""
    paths = [folder / VIDEO_PATH.format(camera=camera, file=row["file"]) for camera in cameras]
    return np.stack([_frames(path, first, count, hz, name) for path in paths], axis=1)


def _before(folder: Path, hz: float, cameras: Cameras, row: PairRow, name: str) -> np.ndarray | None:
    if not row["before_frames"]:
        return None if row["before_frames"] is None else NO_FRAMES
    return _views(folder, hz, cameras, row, row["before_from_frame"], row["before_frames"], f"{name}, before")


def _read(folder: Path, hz: float, layout: Layout, row: PairRow) -> PreferencePair:
    name = f"{folder}, pair {row['pair']}"
    with naming_episode(name):
        values = read_labels(PreferencePair, {label: row[label] for label in (*LABELS, *LATER)}, name)
        place = (folder, hz, layout.cameras, row)
        values |= {ours: _segment(*place, side, name) for side, ours in SIDES.items()}
        pair = PreferencePair(**values | {"layout": layout}, before=_before(*place, name))
        problems = pair_problems(name, pair)
    if problems:
        raise BrokenEpisodeError(problems)
    return pair


def pair_reads(folder: Path) -> list[Callable[[], PreferencePair]]:
    """One call for each pair; BrokenEpisodeError, naming side and step, for what is wrong with it."""
    info, layout = read_info(folder)
    return [partial(_read, folder, info.hz, layout, row) for row in _rows(folder, info)]
