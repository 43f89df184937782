"""LeRobotDataset v3 -> episodes, for datasets of two arms as `ee` poses and three square views, as this lab writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from envs.robotwin.env import fit
from envs.types import EE_DIM, Episode
from rl_lab.errors import UserError
from rl_lab.formats import lerobot_schema as schema
from rl_lab.formats.checks import BrokenEpisodeError, Problem, Report, episode_problems, sound_episodes
from rl_lab.formats.video import read_frames

Row = dict[str, Any]


def read_info(folder: Path) -> dict[str, Any]:
    """info.json of a dataset that this reader can turn into episodes; UserError for any other."""
    path = folder / schema.INFO_PATH
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the info.json of a LeRobotDataset ({error!r})") from error
    if not str(version).startswith("v3."):
        raise UserError(f"{folder} is LeRobotDataset {version}; convert it to v3 with lerobot's own script")
    for key in (schema.STATE, schema.ACTION):
        shape = list(features.get(key, {}).get("shape", []))
        if shape != [EE_DIM]:
            raise UserError(f"{folder}: {key} has shape {shape}, expected [{EE_DIM}]: xyz, wxyz, gripper of two arms")
    missing = [key for key in schema.VIDEO_KEYS if features.get(key, {}).get("dtype") != "video"]
    if missing:
        raise UserError(f"{folder} has no video {missing[0]}; all of {', '.join(schema.VIDEO_KEYS)} are needed")
    return info


def read_rows(folder: Path) -> list[Row]:
    """The table of episodes, without statistics, in order."""
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder} has no meta/episodes/chunk-000/file-000.parquet")
    rows: list[Row] = []
    for path in paths:
        try:
            names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
            rows += pq.read_table(path, columns=names).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    return sorted(rows, key=lambda row: row["episode_index"])


def _images(path: Path, start: float, hz: float, steps: np.ndarray, name: str, seek: bool = False) -> np.ndarray:
    """Frames shown at the given steps of an episode that starts at `start` seconds of a video; with `seek` what lies
    before the first of them is not decoded."""
    wanted = {round(start * hz) + int(step): number for number, step in enumerate(steps)}
    images: dict[int, np.ndarray] = {}
    for time, image in read_frames(path, start + (int(steps[0]) / hz if seek else 0.0)):
        frame = round(time * hz)
        if frame in wanted:
            images[wanted[frame]] = image
        if len(images) == len(wanted):
            return np.stack([images[number] for number in range(len(steps))])
    text = f"truncated: {path} ends after {len(images)} of {len(wanted)} frames"
    raise BrokenEpisodeError([Problem(name, int(steps[len(images)]), text)])


@lru_cache(maxsize=8)
def _tables(folder: Path) -> tuple[dict[str, Any], dict[int, Row]]:
    return read_info(folder), {row["episode_index"]: row for row in read_rows(folder)}


def _video(folder: Path, info: dict[str, Any], row: Row, key: str) -> Path:
    place = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
    return folder / info["video_path"].format(video_key=key, **place)


def read_images(folder: Path, episode: int, frames: np.ndarray, image_size: int) -> np.ndarray:
    """Frames of an episode by their number, uint8 [n, 3, S, S, 3]; BrokenEpisodeError if they cannot be read."""
    info, rows = _tables(folder)
    row, hz, views = rows[episode], float(info["fps"]), []
    name = f"{folder}, episode {episode}"
    has_own_steps = {schema.FRAME_STEP, schema.OLD_FRAME_STEP} & info["features"].keys()
    steps = _frame_steps(_rows(folder, info, row))[frames] if has_own_steps else frames
    try:
        for key in schema.VIDEO_KEYS:
            path, start = _video(folder, info, row, key), row[f"videos/{key}/from_timestamp"]
            images = [_images(path, start, hz, np.array([step]), name, seek=True)[0] for step in steps]
            views.append(np.stack([fit(image, image_size) for image in images]))
    except (OSError, av.FFmpegError) as error:
        text = f"cannot be read: {' '.join(str(error).split())}"
        raise BrokenEpisodeError([Problem(name, int(frames[0]), text)]) from error
    return np.stack(views, axis=1)


def _rows(folder: Path, info: dict[str, Any], row: Row) -> pa.Table:
    """The data of an episode."""
    data = {key: row[f"data/{key}"] for key in ("chunk_index", "file_index")}
    own_rows = pc.field("episode_index") == row["episode_index"]
    return pq.read_table(folder / info["data_path"].format(**data), filters=own_rows)


def _column(table: pa.Table, key: str) -> np.ndarray:
    values = table[key].combine_chunks().to_numpy(zero_copy_only=False)
    return np.stack(values).astype(np.float64) if values.dtype == object else values


def _frame_steps(table: pa.Table) -> np.ndarray:
    """Steps of an episode at which images were taken, int64 [N]: all of them unless a column of ours says otherwise."""
    ours = [key for key in (schema.FRAME_STEP, schema.OLD_FRAME_STEP) if key in table.column_names]
    return np.unique(_column(table, ours[0])) if ours else np.arange(table.num_rows)


def _read(folder: Path, info: dict[str, Any], row: Row, name: str) -> Episode:
    table = _rows(folder, info, row)
    if table.num_rows != row["length"]:
        text = f"truncated: {table.num_rows} rows in the data, {row['length']} in the table of episodes"
        raise BrokenEpisodeError([Problem(name, min(table.num_rows, row["length"]), text)])
    hz, steps = float(info["fps"]), table.num_rows
    late = ~(np.abs(_column(table, "timestamp") - np.arange(steps) / hz) <= 0.5 / hz)
    if late.any():
        first = int(np.argmax(late))
        stamp = _column(table, "timestamp")[first]
        text = f"wrong rate: timestamp {stamp:.3f} s, expected {first / hz:.3f} s at {hz:g} Hz"
        raise BrokenEpisodeError([Problem(name, first, text)])
    states, actions = _column(table, schema.STATE), _column(table, schema.ACTION)
    labels = json.loads(row.get(schema.LABELS) or "{}")
    final = np.array(labels.pop("final_pose", actions[-1]), dtype=np.float64)
    frame_steps = _frame_steps(table)
    images = []
    for key in schema.VIDEO_KEYS:
        path = _video(folder, info, row, key)
        images.append(_images(path, row[f"videos/{key}/from_timestamp"], hz, frame_steps, name))
    foreign = {"task": folder.name, "variant": "", "seed": row["episode_index"], "success": True}
    told = {"instruction": (row.get("tasks") or [""])[0], "num_steps": steps}
    episode = Episode(
        **(foreign | told | labels),
        poses=np.concatenate([states, final[None]]),
        actions=actions,
        frame_steps=frame_steps,
        images=np.stack(images, axis=1),
    )
    problems = episode_problems(name, episode)
    if problems:
        raise BrokenEpisodeError(problems)
    return episode


def _read_checked(folder: Path, info: dict[str, Any], row: Row) -> Episode:
    name = f"{folder}, episode {row['episode_index']}"
    try:
        return _read(folder, info, row, name)
    except UserError:
        raise
    except (OSError, pa.ArrowException, av.FFmpegError, ValueError, KeyError, TypeError) as error:
        text = f"cannot be read, broken or truncated: {' '.join(str(error).split())}"
        raise BrokenEpisodeError([Problem(name, None, text)]) from error


def read_episode(folder: Path, episode: int) -> Episode:
    """One episode by its index; BrokenEpisodeError with what is wrong with it."""
    info, rows = _tables(folder)
    return _read_checked(folder, info, rows[episode])


def episode_reads(folder: Path) -> list[Callable[[], Episode]]:
    """One call for each episode of a dataset."""
    info = read_info(folder)
    return [partial(_read_checked, folder, info, row) for row in read_rows(folder)]


def read_lerobot(folder: Path, report: Report | None = None) -> Iterator[Episode]:
    """Episodes of a dataset in order; broken ones are raised, or left out where `report` is given."""
    return sound_episodes(episode_reads(folder), report)
