"""The Parquet and video layout of `pairs_write` -> the trainer's own preference pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.types import CAMERAS, NO_FRAMES, PreferencePair, Segment
from rl_lab.errors import UserError
from rl_lab.formats.checks import BrokenEpisodeError, Problem, pair_problems
from rl_lab.formats.pairs_write import DATA_PATH, FORMAT, INFO_FILE, PAIRS_FILE, SIDES, VERSION, VIDEO_PATH
from rl_lab.formats.video import read_frames

Row = dict[str, Any]
LABELS = [item.name for item in fields(PreferencePair) if item.name not in (*SIDES.values(), "before")]
ROW_COLUMNS = {"pair", "file", *LABELS, "before_from_frame", "before_frames"}
ROW_COLUMNS |= {*(f"{side}_{what}" for side in SIDES for what in ("from_row", "to_row"))} | {
    f"{side}_from_frame" for side in SIDES
}


def read_info(folder: Path) -> dict[str, Any]:
    """pairs_info.json; UserError if it is not of this layout and version."""
    path = folder / INFO_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        kind, version, _ = info["format"], info["version"], float(info["hz"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the description of a set of pairs ({error!r})") from error
    if (kind, version) != (FORMAT, VERSION):
        raise UserError(f"{folder} is {kind} version {version}; this lab reads {FORMAT} version {VERSION}")
    return info


def _rows(folder: Path) -> list[Row]:
    path = folder / PAIRS_FILE
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    missing = ROW_COLUMNS - set(rows[0] if rows else ROW_COLUMNS)
    if missing:
        raise UserError(f"{path} has no column {sorted(missing)[0]}")
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


def _segment(folder: Path, info: dict[str, Any], row: Row, side: str, name: str) -> Segment:
    start, stop = row[f"{side}_from_row"], row[f"{side}_to_row"]
    table = pq.read_table(folder / DATA_PATH.format(file=row["file"]))[start:stop]
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
        images=_views(folder, info, row, row[f"{side}_from_frame"], stop - start - 1, name),
    )


def _views(folder: Path, info: dict[str, Any], row: Row, first: int, count: int, name: str) -> np.ndarray:
    """Frames of all cameras, uint8 [count, 3, S, S, 3]."""
    paths = [folder / VIDEO_PATH.format(camera=camera, file=row["file"]) for camera in CAMERAS]
    return np.stack([_frames(path, first, count, float(info["hz"]), name) for path in paths], axis=1)


def _before(folder: Path, info: dict[str, Any], row: Row, name: str) -> np.ndarray | None:
    if not row["before_frames"]:
        return None if row["before_frames"] is None else NO_FRAMES
    return _views(folder, info, row, row["before_from_frame"], row["before_frames"], f"{name}, before")


def _read(folder: Path, info: dict[str, Any], row: Row) -> PreferencePair:
    name = f"{folder}, pair {row['pair']}"
    try:
        values: dict[str, Any] = {label: row[label] for label in LABELS}
        values |= {ours: _segment(folder, info, row, side, name) for side, ours in SIDES.items()}
        pair = PreferencePair(**values, before=_before(folder, info, row, name))
        problems = pair_problems(name, pair)
    except UserError:
        raise
    except (OSError, pa.ArrowException, av.FFmpegError, ValueError, KeyError, TypeError, IndexError) as error:
        text = f"cannot be read, broken or truncated: {' '.join(str(error).split())}"
        raise BrokenEpisodeError([Problem(name, None, text)]) from error
    if problems:
        raise BrokenEpisodeError(problems)
    return pair


def pair_reads(folder: Path) -> list[Callable[[], PreferencePair]]:
    """One call for each pair; BrokenEpisodeError, naming side and step, for what is wrong with it."""
    info = read_info(folder)
    return [partial(_read, folder, info, row) for row in _rows(folder)]
