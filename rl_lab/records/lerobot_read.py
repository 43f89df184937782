"""LeRobotDataset v3 -> episodes: of two arms as `ee` poses and three views, as this lab writes, or of any other layout.

What the format says in two places is read where lerobot reads it: the instruction of an episode from the `task_index`
of its rows, the size of pictures and their times from the videos. Views that are square and alike stay as they are,
others are scaled to fit squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from envs.pictures import fit
from envs.types import CAMERAS, Episode, Layout
from rl_lab.common.reading import parse_json
from rl_lab.records import lerobot_tables as schema
from rl_lab.records.checks import (
    BrokenEpisodeError,
    Problem,
    episode_problems,
    naming_episode,
    read_frames,
)
from rl_lab.records.labels import read_labels
from rl_lab.records.lerobot_tables import BIMANUAL_EE, Asked, EpisodeRow, Info, read_info, read_rows, read_tasks

TIME_TOLERANCE = 0.1
"""How far from its time a frame of a video may be shown, in frames of the dataset."""


def _images(video: tuple[Path, float], hz: float, steps: np.ndarray, name: str, seek: bool = False) -> np.ndarray:
    """Frames shown at the given steps of an episode that starts at some second of a video; with `seek` what lies
    before the first of them is not decoded."""
    path, start = video
    places = {int(step): place for place, step in enumerate(steps)}
    images: dict[int, np.ndarray] = {}
    for time, image in read_frames(path, start + (int(steps[0]) / hz if seek else 0.0)):
        shown = (time - start) * hz
        if round(shown) in places and abs(shown - round(shown)) <= TIME_TOLERANCE:
            images[places[round(shown)]] = image
        if len(images) == len(places):
            return np.stack([images[number] for number in range(len(steps))])
    missing = next(step for step, place in places.items() if place not in images)
    text = f"truncated or of another rate: {path} shows {len(images)} of {len(places)} frames at {hz:g} Hz"
    raise BrokenEpisodeError([Problem(name, missing, text)])


def _views(row: EpisodeRow, hz: float, steps: np.ndarray, name: str, image_size: int, seek: bool = False) -> np.ndarray:
    """Frames of an episode, uint8 [N, V, S, S, 3]."""
    views = [_images(video, hz, steps, name, seek) for video in row.videos.values()]
    sizes = {view.shape[1:3] for view in views}
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        views = [np.stack([fit(image, image_size) for image in view]) for view in views]
    return np.stack(views, axis=1)


@lru_cache(maxsize=8)
def _tables(folder: Path, asked: Asked) -> tuple[Info, Layout, dict[int, EpisodeRow], Mapping[int, str]]:
    info, layout = read_info(folder, asked)
    return info, layout, {row.number: row for row in read_rows(folder, info, layout.cameras)}, read_tasks(folder)


def read_images(
    folder: Path, episode: int, frames: np.ndarray, image_size: int, cameras: tuple[str, ...] = CAMERAS
) -> np.ndarray:
    """Frames of an episode by their number, uint8 [n, V, S, S, 3]; BrokenEpisodeError if they cannot be read."""
    info, _, rows, _ = _tables(folder, Asked("raw", cameras))
    row, views = rows[episode], []
    name = f"{folder}, episode {episode}"
    with naming_episode(name, int(frames[0])):
        has_own_steps = {schema.FRAME_STEP, schema.OLD_FRAME_STEP} & info.features.keys()
        steps = _frame_steps(_rows(row))[frames] if has_own_steps else frames
        for video in row.videos.values():
            images = [_images(video, info.fps, np.array([step]), name, seek=True)[0] for step in steps]
            views.append(np.stack([fit(image, image_size) for image in images]))
    return np.stack(views, axis=1)


def _rows(row: EpisodeRow) -> pa.Table:
    """The data of an episode."""
    return pq.read_table(row.data, filters=pc.field("episode_index") == row.number, partitioning=None)


def _column(table: pa.Table, key: str) -> np.ndarray:
    if key not in table.column_names:
        raise ValueError(f"column {key} is missing")
    values = table[key].combine_chunks().to_numpy(zero_copy_only=False)
    return np.stack(values).astype(np.float64) if values.dtype == object else values


def _vectors(table: pa.Table, key: str, size: int) -> np.ndarray:
    values = _column(table, key)
    if values.shape != (table.num_rows, size):
        raise ValueError(f"{key} has shape {list(values.shape)}, expected [{table.num_rows}, {size}]")
    return values


def _frame_steps(table: pa.Table) -> np.ndarray:
    """Steps of an episode at which images were taken, int64 [N]: all of them unless a column of ours says otherwise."""
    ours = [key for key in (schema.FRAME_STEP, schema.OLD_FRAME_STEP) if key in table.column_names]
    return np.unique(_column(table, ours[0])) if ours else np.arange(table.num_rows)


def _instruction(table: pa.Table, row: EpisodeRow, tasks: Mapping[int, str], name: str) -> str:
    """The task of all rows; from the table of episodes where the table of tasks is empty."""
    found = list(row.tasks or [])
    if tasks:
        found = [tasks.get(number, "") for number in np.unique(_column(table, "task_index")).tolist()]
    if len(found) > 1:
        text = f"has {len(found)} tasks ({', '.join(map(repr, found[:2]))}), expected one; split it by task_index"
        raise BrokenEpisodeError([Problem(name, None, text)])
    return found[0] if found else ""


def _check_times(table: pa.Table, row: EpisodeRow, hz: float, name: str) -> None:
    """There are as many rows as the table of episodes says, at the rate of the dataset."""
    if table.num_rows != row.length or not row.length:
        text = f"truncated: {table.num_rows} rows in the data, {row.length} in the table of episodes"
        raise BrokenEpisodeError([Problem(name, min(table.num_rows, row.length), text)])
    stamps, times = _column(table, "timestamp"), np.arange(row.length) / hz
    late = ~(np.abs(stamps - times) <= 0.5 / hz)
    if late.any():
        first = int(np.argmax(late))
        text = f"wrong rate: timestamp {stamps[first]:.3f} s, expected {times[first]:.3f} s at {hz:g} Hz"
        raise BrokenEpisodeError([Problem(name, first, text)])


def _labels(row: EpisodeRow, name: str) -> dict[str, Any]:
    """What our own exports say beyond the format: labels of the episode, and its `final_pose`."""
    found = parse_json(row.labels or "{}", f"{name}, {schema.LABELS}")
    if not isinstance(found, dict):
        raise ValueError(f"{schema.LABELS} is no object")
    return found


def episode_place(folder: Path, number: int, asked: Asked = BIMANUAL_EE) -> tuple[str, str, int] | None:
    """Task, variant and environment seed of an episode, which only our own exports tell."""
    _, _, rows, _ = _tables(folder, asked)
    labels = _labels(rows[number], str(folder))
    task, variant, seed = (labels.get(name) for name in ("task", "variant", "seed"))
    is_told = isinstance(task, str) and isinstance(variant, str) and isinstance(seed, int)
    return (task, variant, seed) if is_told else None  # type: ignore[return-value]  # mypy does not see through is_told


def _read(folder: Path, number: int, name: str, image_size: int, decode: bool, asked: Asked) -> Episode:
    info, layout, rows, tasks = _tables(folder, asked)
    row = rows[number]
    table = _rows(row)
    _check_times(table, row, info.fps, name)
    states = _vectors(table, schema.STATE, layout.state_dim)
    actions = _vectors(table, schema.ACTION, layout.action_dim)
    labels = _labels(row, name)
    reached = actions[-1] if layout.action_dim == layout.state_dim else states[-1]
    final = np.array(labels.pop("final_pose", reached), dtype=np.float64)
    labels.pop("layout", None)
    truth = labels.pop(schema.TRUTH, None)
    foreign = {"task": folder.name, "variant": "", "seed": number, "success": True}
    told = {"instruction": _instruction(table, row, tasks, name), "num_steps": row.length}
    frame_steps = _frame_steps(table)
    images = _views(row, info.fps, frame_steps if decode else frame_steps[-1:], name, image_size, seek=not decode)
    episode = Episode(
        **read_labels(Episode, foreign | told | labels, f"{name}, {schema.LABELS}") | {"layout": layout},
        poses=np.concatenate([states, final[None]]),
        actions=actions,
        frame_steps=frame_steps,
        images=np.broadcast_to(images, (len(frame_steps), *images.shape[1:])),
        truth=None if truth is None else np.array(truth, dtype=np.float32),
    )
    problems = episode_problems(name, episode)
    if problems:
        raise BrokenEpisodeError(problems)
    return episode


def read_episode(
    folder: Path,
    episode: int,
    image_size: int,
    save_freq: int,
    split: str,
    decode: bool = True,
    asked: Asked = BIMANUAL_EE,
) -> Episode:
    """One episode by its index, without `decode` with its last image in the place of all; BrokenEpisodeError with what
    is wrong with it. The dataset says itself what RoboTwin's `save_freq` and `split` would."""
    name = f"{folder}, episode {episode}"
    with naming_episode(name):
        return _read(folder, episode, name, image_size, decode, asked)


def find_episodes(folder: Path, asked: Asked = BIMANUAL_EE) -> tuple[list[int], float]:
    """Indices of a dataset's episodes, and its rate in hertz."""
    _tables.cache_clear()  # of a folder that may have been changed since
    info, _, rows, _ = _tables(folder, asked)
    return list(rows), info.fps
