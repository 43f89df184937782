"""The Parquet and video layout of `pairs_write` -> the trainer's own preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.types import CAMERAS, NO_FRAMES, PreferencePair, Segment
from rl_lab.errors import UserError
from rl_lab.formats.checks import BrokenEpisodeError, Problem, check_rate, pair_problems
from rl_lab.formats.damaged import naming_episode, read_columns
from rl_lab.formats.labels import label_names, read_labels
from rl_lab.formats.pairs_write import DATA_PATH, FORMAT, INFO_FILE, PAIRS_FILE, SIDES, VERSION, VIDEO_PATH
from rl_lab.formats.video import read_frames
from rl_lab.reading import read_as, read_object

Row = dict[str, Any]
LABELS = label_names(PreferencePair)
NUMBERS = ["pair", "file", "before_from_frame"]
NUMBERS += [f"{side}_{what}" for side in SIDES for what in ("from_row", "to_row", "from_frame")]


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


def read_info(folder: Path) -> PairsInfo:
    """pairs_info.json; UserError if it is not of this layout and version."""
    path = folder / INFO_FILE
    found = read_object(path)
    kind, version = found.get("format"), found.get("version")
    if (kind, version) != (FORMAT, VERSION):
        raise UserError(
            f"{folder} is {str(kind)[:40]} version {str(version)[:40]}; this lab reads {FORMAT} version {VERSION}"
        )
    info = read_as(path, PairsInfo)
    check_rate(f"{path}: hz", info.hz)
    if info.cameras != list(CAMERAS):
        raise UserError(f"{path}: cameras are {', '.join(info.cameras)}; expected {', '.join(CAMERAS)}")
    return info


def _rows(folder: Path, info: PairsInfo) -> list[Row]:
    path = folder / PAIRS_FILE
    kinds = dict.fromkeys(NUMBERS, pa.int64()) | dict.fromkeys([*LABELS, "before_frames"])
    rows = read_columns(path, kinds)
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


def _segment(folder: Path, hz: float, row: Row, side: str, name: str) -> Segment:
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
    return Segment(
        poses=np.array(data["observation.state"], dtype=np.float64),
        actions=np.array(data["action"][:-1], dtype=np.float64),
        images=_views(folder, hz, row, row[f"{side}_from_frame"], stop - start - 1, name),
    )


def _views(folder: Path, hz: float, row: Row, first: int, count: int, name: str) -> np.ndarray:
    """Frames of all cameras, uint8 [count, 3, S, S, 3]."""
    paths = [folder / VIDEO_PATH.format(camera=camera, file=row["file"]) for camera in CAMERAS]
    return np.stack([_frames(path, first, count, hz, name) for path in paths], axis=1)


def _before(folder: Path, hz: float, row: Row, name: str) -> np.ndarray | None:
    if not row["before_frames"]:
        return None if row["before_frames"] is None else NO_FRAMES
    return _views(folder, hz, row, row["before_from_frame"], row["before_frames"], f"{name}, before")


def _read(folder: Path, hz: float, row: Row) -> PreferencePair:
    name = f"{folder}, pair {row['pair']}"
    with naming_episode(name):
        values = read_labels(PreferencePair, {label: row[label] for label in LABELS}, name)
        values |= {ours: _segment(folder, hz, row, side, name) for side, ours in SIDES.items()}
        pair = PreferencePair(**values, before=_before(folder, hz, row, name))
        problems = pair_problems(name, pair)
    if problems:
        raise BrokenEpisodeError(problems)
    return pair


def pair_reads(folder: Path) -> list[Callable[[], PreferencePair]]:
    """One call for each pair; BrokenEpisodeError, naming side and step, for what is wrong with it."""
    info = read_info(folder)
    return [partial(_read, folder, info.hz, row) for row in _rows(folder, info)]
