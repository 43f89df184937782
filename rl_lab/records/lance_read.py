"""UMI recordings of Hy-Embodied-0.5-VLA in Lance tables -> episodes of two arms as `ee` poses, in RoboTwin's frames.

ROOT/TABLE/TABLE.lance     a row a frame: observation_state [16] (of each arm xyz, quaternion xyzw, gripper), action [2]
                           (both grippers), observation_images_cam_* (JPEG), episode_index, task_index
ROOT/TABLE/meta/           info.json (fps), episodes/**/*.parquet (rows of each episode), tasks.parquet

A gripper counts millimetres closed, 0 to 90. The command of step t is the pose of frame t + 1 with the grippers that
`action` has there, as in the authors' loader. Needs the package `pylance`, which is imported when a table is opened.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from envs.pictures import fit
from envs.se3 import robotwin_from_umi
from envs.types import CAMERAS, EE_DIM, Episode
from rl_lab.common.errors import UserError
from rl_lab.common.pictures import read_picture
from rl_lab.common.reading import read_object
from rl_lab.records.checks import (
    BrokenEpisodeError,
    Problem,
    check_rate,
    episode_problems,
    naming_episode,
    read_columns,
)
from rl_lab.records.lerobot_tables import INFO_PATH, TASKS_PATH

STATE, ACTION = "observation_state", "action"
PICTURES = tuple(f"observation_images_cam_{name}" for name in ("high", "left_wrist", "right_wrist"))
"""Columns of `CAMERAS`."""
QUAT_WXYZ = [0, 1, 2, 6, 3, 4, 5, 7]
"""Places of an arm's numbers whose quaternion is xyzw."""


def find_tables(folder: Path) -> list[Path]:
    """Folders of the tables in a folder, or the folder itself if it is one of a table; [] where there is none."""
    if not folder.is_dir():
        return []
    candidates = (folder, *sorted(path for path in folder.iterdir() if path.is_dir()))
    return [path for path in candidates if (path / f"{path.resolve().name}.lance").is_dir()]


def find_episodes(table: Path) -> tuple[list[int], float]:
    """Numbers of a table's episodes, and its rate in hertz. UserError without pylance, or for another kind of table."""
    if importlib.util.find_spec("lance") is None:
        raise UserError(f"{table} is a Lance table, which pylance reads; run pip install pylance==14.0.2")
    path = table / INFO_PATH
    hz = read_object(path).get("fps")
    if not isinstance(hz, int | float):
        raise UserError(f"{path}: fps is {hz!r}, no number")
    _opened.cache_clear()  # of a table that may have been changed since
    dataset, rows, _ = _opened(table)
    if missing := {STATE, ACTION, *PICTURES, "episode_index", "task_index"} - set(dataset.schema.names):
        raise UserError(f"{table} has no column {min(missing)}; it is none of the UMI recordings")
    return list(rows), check_rate(f"{path}: fps", hz)


@lru_cache(maxsize=8)
def _opened(table: Path) -> tuple[Any, dict[int, range], dict[int, str]]:
    """The data, rows of every episode, and instructions."""
    import lance  # here, because few have it

    kinds = dict.fromkeys(("episode_index", "dataset_from_index", "dataset_to_index"), pa.int64())
    parts = [row for path in sorted((table / "meta/episodes").rglob("*.parquet")) for row in read_columns(path, kinds)]
    if not parts:
        raise UserError(f"{table} has no episodes in meta/episodes")
    rows = {row["episode_index"]: range(row["dataset_from_index"], row["dataset_to_index"]) for row in parts}
    tasks = read_columns(table / TASKS_PATH, {"task_index": pa.int64(), "task": pa.string()})
    try:
        dataset = lance.dataset(str(table / f"{table.resolve().name}.lance"))
    except (OSError, ValueError) as error:
        raise UserError(f"{table} cannot be opened: {' '.join(str(error).split())}") from error
    return dataset, rows, {row["task_index"]: row["task"] for row in tasks}


def episode_place(table: Path, episode: int) -> None:
    """The recordings are of no simulator's task and seed."""
    return


def read_images(
    table: Path, episode: int, frames: np.ndarray, image_size: int, _: tuple[str, ...] = CAMERAS
) -> np.ndarray:
    """Some frames of an episode, uint8 [n, 3, S, S, 3]; BrokenEpisodeError if they cannot be read."""
    with naming_episode(f"{table}, episode {episode}", int(frames[0])):
        dataset, rows, _tasks = _opened(table)
        found = dataset.take([rows[episode][int(frame)] for frame in frames], columns=list(PICTURES))
        return _pictures(found, image_size)


def _pictures(found: pa.Table, image_size: int) -> np.ndarray:
    views: list[Sequence[bytes]] = [found[name].to_pylist() for name in PICTURES]
    shown = [[fit(np.asarray(read_picture(data)), image_size) for data in frame] for frame in zip(*views, strict=True)]
    return np.array(shown, dtype=np.uint8)


def read_episode(
    table: Path, episode: int, image_size: int, save_freq: int, split: str, decode: bool = True
) -> Episode:
    """One episode by its number, without `decode` with its first image in the place of all; BrokenEpisodeError with
    what is wrong with it. The table says itself what RoboTwin's `save_freq` and `split` would."""
    name = f"{table}, episode {episode}"
    with naming_episode(name):
        return _read(table, episode, name, image_size, decode)


def _read(table: Path, number: int, name: str, image_size: int, decode: bool) -> Episode:
    dataset, rows, tasks = _opened(table)
    places = rows[number]
    found = dataset.take(list(places), columns=[STATE, ACTION, "episode_index", "task_index"])
    owners, used = (set(found[key].to_pylist()) for key in ("episode_index", "task_index"))
    if owners != {number} or len(places) < 2:
        text = (
            f"truncated: its {len(places)} rows are of the episodes {sorted(owners)}; expected two or more of its own"
        )
        raise BrokenEpisodeError([Problem(name, None, text)])
    if len(used) > 1:
        raise BrokenEpisodeError([Problem(name, None, f"has {len(used)} tasks, expected one; split it by task_index")])
    poses, commands = _poses(found)
    steps = len(poses) - 1
    shown = np.arange(steps) if decode else np.arange(1)
    images = read_images(table, number, shown, image_size)
    episode = Episode(
        task=table.resolve().name,
        variant="",
        seed=number,
        instruction=tasks.get(used.pop(), ""),
        success=True,  # recorded by people who showed the task
        num_steps=steps,
        poses=poses,
        actions=commands[1:],
        frame_steps=np.arange(steps),
        images=np.broadcast_to(images, (steps, *images.shape[1:])),
        extra={"source": str(table)},
    )
    problems = episode_problems(name, episode)
    if problems:
        raise BrokenEpisodeError(problems)
    return episode


def _poses(found: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Measured poses and those with commanded grippers, [N, 16] each."""
    states, grippers = (np.array(found[key].to_pylist(), dtype=np.float64) for key in (STATE, ACTION))
    for key, values, size in ((STATE, states, EE_DIM), (ACTION, grippers, 2)):
        if values.shape != (found.num_rows, size):
            raise ValueError(f"{key} has shape {list(values.shape)}, expected [{found.num_rows}, {size}]")
    arms = states.reshape(len(states), 2, -1)[..., QUAT_WXYZ]
    commanded = np.concatenate([arms[..., :7], grippers[..., None]], axis=-1)
    measured, wanted = (robotwin_from_umi(one.reshape(len(states), -1)) for one in (arms, commanded))
    return measured, wanted
