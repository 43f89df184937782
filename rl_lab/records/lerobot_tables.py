"""Names, paths, features and statistics of a LeRobotDataset v3 as this lab writes it, and what its tables say.

Tables are read whole, or refused in one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from envs.types import ARMS, BIMANUAL, CAMERAS, EE_DIM, Layout, Numbers
from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit, read_object
from rl_lab.records.checks import check_rate, read_columns

VERSION = "v3.0"

INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"

EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

CHUNK_SIZE = 1000

DATA_MB, VIDEO_MB = 100, 200

STATE, ACTION = "observation.state", "action"

FRAME_STEP, OLD_FRAME_STEP = "frame_step", "observation.image_step"
"""Our column: the step of the image that is shown. LeRobot's tools take whatever has "image" in its name for pictures,
and whatever begins with "observation" for what a policy sees."""


def video_keys(cameras: tuple[str, ...]) -> tuple[str, ...]:
    """Of the videos of our own exports."""
    return tuple(f"observation.images.{camera}" for camera in cameras)


VIDEO_KEYS = video_keys(CAMERAS)

LABELS = "rl_lab/labels"
"""Our column of the episodes table: everything of an `Episode` that the format has no place for, as JSON."""

TRUTH = "truth"
"""Key of `Episode.truth` in them, a list for each frame; missing where there is none."""

EE_NAMES = [f"{arm}_{name}" for arm in ARMS for name in ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")]

INDEX_NAMES = ("frame_index", "episode_index", "index", "task_index")

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def features(side: int, fps: float, layout: Layout = BIMANUAL) -> dict[str, Any]:
    """The `features` of info.json for square videos, and the numbers of state and of action."""
    sizes = {STATE: layout.state_dim, ACTION: layout.action_dim}
    names = {key: [f"{layout.numbers}_{place}" for place in range(size)] for key, size in sizes.items()}
    if layout.numbers == "ee":
        names = dict.fromkeys(sizes, EE_NAMES[-layout.state_dim :])
    vectors = {key: {"dtype": "float32", "shape": [size], "names": names[key]} for key, size in sizes.items()}
    video = {
        "video.height": side,
        "video.width": side,
        "video.channels": 3,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.fps": fps,
        "video.is_depth_map": False,
        "has_audio": False,
    }
    image = {"dtype": "video", "shape": [side, side, 3], "names": ["height", "width", "channels"], "info": video}
    scalar = {"shape": [1], "names": None}
    return {
        **vectors,
        FRAME_STEP: scalar | {"dtype": "int64"},
        **{key: image for key in video_keys(layout.cameras)},
        "timestamp": scalar | {"dtype": "float32"},
        **{name: scalar | {"dtype": "int64"} for name in INDEX_NAMES},
    }


def vector_stats(values: np.ndarray) -> dict[str, list]:
    """Of rows [n, d]: min, max, mean, std (population), count and quantiles, each [d]."""
    values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    stats = {name: getattr(values, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    return stats | {"count": [len(values)]} | {k: np.quantile(values, q, axis=0).tolist() for k, q in QUANTILES.items()}


def image_stats(images: np.ndarray) -> dict[str, list]:
    """Of images uint8 [n, S, S, 3], per channel in [0, 1], each [3, 1, 1]; at most 100 images, every fourth pixel."""
    chosen = images[np.unique(np.linspace(0, len(images) - 1, min(len(images), 100)).astype(int))][:, ::4, ::4]
    stats = vector_stats(chosen.reshape(-1, 3) / 255.0)
    return {k: [len(chosen)] if k == "count" else np.reshape(v, (3, 1, 1)).tolist() for k, v in stats.items()}


def pooled_stats(parts: list[dict[str, list]]) -> dict[str, list]:
    """Statistics of episodes as one: exact, but for quantiles, which are the means of the episodes' (as LeRobot's)."""
    arrays = {key: np.array([part[key] for part in parts], dtype=np.float64) for key in parts[0]}
    count = arrays["count"].reshape(-1, *[1] * (arrays["mean"].ndim - 1))
    weight = count / count.sum()
    mean = (weight * arrays["mean"]).sum(axis=0)
    variance = (weight * (arrays["std"] ** 2 + (arrays["mean"] - mean) ** 2)).sum(axis=0)
    pooled = {"min": arrays["min"].min(axis=0), "max": arrays["max"].max(axis=0), "mean": mean, "std": variance**0.5}
    pooled |= {key: (weight * arrays[key]).sum(axis=0) for key in QUANTILES}
    return {key: value.tolist() for key, value in pooled.items()} | {"count": [int(count.sum())]}


@dataclass(frozen=True)
class Feature:
    """What info.json says about a column or a video."""

    dtype: str
    shape: list[int]
    info: dict[str, Any] | None = None


@dataclass(frozen=True)
class Info:
    """What is read of info.json; its counts and sizes are what somebody wrote there, the files decide."""

    codebase_version: str
    fps: float
    features: dict[str, Feature]
    total_episodes: int
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH


@dataclass(frozen=True)
class EpisodeRow:
    """Where an episode lies."""

    number: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]
    """File of each camera and second at which the episode begins in it."""
    tasks: list[str] | None
    labels: str | None
    """Our column, as JSON."""


@dataclass(frozen=True)
class Asked:
    """What is read of a dataset: what its numbers are is declared, how many there are its features say."""

    numbers: Numbers = "ee"
    cameras: tuple[str, ...] = ()
    """In order, as the keys of their videos end; () for RoboTwin's three of ee, for every video of other numbers."""


BIMANUAL_EE = Asked()
"""What is read where nothing is said: two arms as poses, three cameras."""


def read_info(folder: Path, asked: Asked = BIMANUAL_EE) -> tuple[Info, Layout]:
    """info.json of a dataset that this lab can turn into episodes, and their layout; UserError for any other."""
    path = folder / INFO_PATH
    content = read_object(path)
    version = content.get("codebase_version")
    if isinstance(version, str) and not version.startswith("v3."):
        raise UserError(f"{folder} is LeRobotDataset {version[:40]}; convert it to v3 with lerobot's own script")
    known = [field.name for field in fields(Info)]
    info = fit({key: value for key, value in content.items() if key in known}, Info, str(path))
    check_rate(f"{path}: fps", info.fps)
    return info, _layout(path, info.features, asked)


def video_key(features: Mapping[str, Feature], camera: str) -> str:
    """The key of a camera's video."""
    keys = (f"observation.images.{camera}", f"observation.{camera}", camera)
    return next((key for key in keys if key in features), keys[0])


def _layout(path: Path, features: dict[str, Feature], asked: Asked) -> Layout:
    """As many numbers as the features say, and videos in colour."""
    shapes = {key: features[key].shape if key in features else [] for key in (STATE, ACTION)}
    for key, shape in shapes.items():
        if len(shape) != 1 or (asked.numbers == "ee" and shape not in ([EE_DIM], [EE_DIM // 2])):
            raise UserError(
                f"{path}: {key} has shape {shape}, expected [{EE_DIM}]: xyz, wxyz, gripper of two arms; of other "
                "numbers say what they are (demos.files.numbers, of rl_lab.data --numbers)"
            )
    every = [key for key, feature in features.items() if feature.dtype == "video" and not _is_depth(feature)]
    names = [key.removeprefix("observation.").removeprefix("images.") for key in every]
    cameras = asked.cameras or (CAMERAS if asked.numbers == "ee" else tuple(names))
    keys = [video_key(features, camera) for camera in cameras]
    for key in keys:
        kind = features[key].dtype if key in features else None
        if kind != "video":
            is_picture = "; its pictures are in Parquet: make videos of them with lerobot's tools" * (kind == "image")
            raise UserError(f"{path} has no video {key}; all of {', '.join(keys)} are needed{is_picture}")
        if _is_depth(features[key]):
            raise UserError(f"{path}: {key} is a depth map; videos in colour are needed")
    try:
        return Layout(asked.numbers, shapes[ACTION][0], shapes[STATE][0], cameras)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _is_depth(feature: Feature) -> bool:
    about = feature.info or {}
    return bool(about.get("video.is_depth_map") or about.get("is_depth_map"))


def read_rows(folder: Path, info: Info, cameras: tuple[str, ...] = CAMERAS) -> list[EpisodeRow]:
    """The table of episodes, in order; UserError if it is damaged or lacks some of them."""
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder} has no meta/episodes/chunk-000/file-000.parquet")
    keys = [video_key(info.features, camera) for camera in cameras]
    parts = [f"videos/{key}" for key in keys]
    where = [f"{part}/{name}" for part in ("data", *parts) for name in ("chunk_index", "file_index")]
    kinds = dict.fromkeys(["episode_index", "length", *where], pa.int64())
    kinds |= dict.fromkeys((f"{part}/from_timestamp" for part in parts), pa.float64())
    optional = {"tasks": pa.list_(pa.string()), LABELS: pa.string()}
    found = [_row(folder, info, row, keys) for path in paths for row in read_columns(path, kinds, optional)]
    numbers = {row.number for row in found}
    if len(numbers) < len(found) or len(found) != info.total_episodes:
        raise UserError(
            f"{folder}: meta/episodes holds {len(found)} episodes, {len(numbers)} of them different, but "
            f"{INFO_PATH} says {info.total_episodes}; make it again"
        )
    return sorted(found, key=lambda row: row.number)


def _row(folder: Path, info: Info, row: dict[str, Any], keys: Sequence[str]) -> EpisodeRow:
    def place(template: str | None, part: str, **names: str) -> Path:
        numbers = {name: row[f"{part}/{name}"] for name in ("chunk_index", "file_index")}
        try:
            return folder / (template or "").format(**numbers, **names)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / INFO_PATH}: {template!r} is no path of a v3 dataset") from error

    videos = {
        key: (place(info.video_path, f"videos/{key}", video_key=key), row[f"videos/{key}/from_timestamp"])
        for key in keys
    }
    data = place(info.data_path, "data")
    return EpisodeRow(row["episode_index"], row["length"], data, videos, row["tasks"], row[LABELS])


def read_tasks(folder: Path) -> dict[int, str]:
    """Instructions by `task_index`; UserError where the dataset has no table of them, which every v3 dataset has."""
    kinds = {"task_index": pa.int64()}
    texts = {"task": pa.string(), "__index_level_0__": pa.string()}  # how pandas stores an index without a name
    rows = read_columns(folder / TASKS_PATH, kinds, texts)
    return {row["task_index"]: row["task"] or row["__index_level_0__"] or "" for row in rows}
