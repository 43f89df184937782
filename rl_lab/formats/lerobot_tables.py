"""What the tables of a LeRobotDataset v3 say about its episodes; read whole, or refused in one line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from envs.types import EE_DIM
from rl_lab.errors import UserError
from rl_lab.formats import lerobot_schema as schema
from rl_lab.formats.checks import check_rate
from rl_lab.formats.damaged import read_columns
from rl_lab.reading import fit, read_object


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
    data_path: str = schema.DATA_PATH
    video_path: str | None = schema.VIDEO_PATH


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


def read_info(folder: Path) -> Info:
    """info.json of a dataset that this lab can turn into episodes; UserError for any other."""
    path = folder / schema.INFO_PATH
    content = read_object(path)
    version = content.get("codebase_version")
    if isinstance(version, str) and not version.startswith("v3."):
        raise UserError(f"{folder} is LeRobotDataset {version[:40]}; convert it to v3 with lerobot's own script")
    known = [field.name for field in fields(Info)]
    info = fit({key: value for key, value in content.items() if key in known}, Info, str(path))
    check_rate(f"{path}: fps", info.fps)
    _check_features(path, info.features)
    return info


def _check_features(path: Path, features: dict[str, Feature]) -> None:
    """There are two arms as poses, and three videos in colour."""
    for key in (schema.STATE, schema.ACTION):
        shape = features[key].shape if key in features else []
        if shape != [EE_DIM]:
            raise UserError(f"{path}: {key} has shape {shape}, expected [{EE_DIM}]: xyz, wxyz, gripper of two arms")
    for key in schema.VIDEO_KEYS:
        kind = features[key].dtype if key in features else None
        if kind != "video":
            is_picture = "; its pictures are in Parquet: make videos of them with lerobot's tools" * (kind == "image")
            raise UserError(f"{path} has no video {key}; all of {', '.join(schema.VIDEO_KEYS)} are needed{is_picture}")
        about = features[key].info or {}
        if about.get("video.is_depth_map") or about.get("is_depth_map"):
            raise UserError(f"{path}: {key} is a depth map; videos in colour are needed")


def read_rows(folder: Path, info: Info) -> list[EpisodeRow]:
    """The table of episodes, in order; UserError if it is damaged or lacks some of them."""
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder} has no meta/episodes/chunk-000/file-000.parquet")
    where = [f"{part}/{name}" for part in ("data", *_video_parts()) for name in ("chunk_index", "file_index")]
    kinds = dict.fromkeys(["episode_index", "length", *where], pa.int64())
    kinds |= dict.fromkeys((f"{part}/from_timestamp" for part in _video_parts()), pa.float64())
    optional = {"tasks": pa.list_(pa.string()), schema.LABELS: pa.string()}
    found = [_row(folder, info, row) for path in paths for row in read_columns(path, kinds, optional)]
    numbers = {row.number for row in found}
    if len(numbers) < len(found) or len(found) != info.total_episodes:
        raise UserError(
            f"{folder}: meta/episodes holds {len(found)} episodes, {len(numbers)} of them different, but "
            f"{schema.INFO_PATH} says {info.total_episodes}; make it again"
        )
    return sorted(found, key=lambda row: row.number)


def _video_parts() -> list[str]:
    return [f"videos/{key}" for key in schema.VIDEO_KEYS]


def _row(folder: Path, info: Info, row: dict[str, Any]) -> EpisodeRow:
    def place(template: str | None, part: str, **names: str) -> Path:
        numbers = {name: row[f"{part}/{name}"] for name in ("chunk_index", "file_index")}
        try:
            return folder / (template or "").format(**numbers, **names)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / schema.INFO_PATH}: {template!r} is no path of a v3 dataset") from error

    videos = {
        key: (place(info.video_path, part, video_key=key), row[f"{part}/from_timestamp"])
        for key, part in zip(schema.VIDEO_KEYS, _video_parts(), strict=True)
    }
    data = place(info.data_path, "data")
    return EpisodeRow(row["episode_index"], row["length"], data, videos, row["tasks"], row[schema.LABELS])


def read_tasks(folder: Path) -> dict[int, str]:
    """Instructions by `task_index`; UserError where the dataset has no table of them, which every v3 dataset has."""
    kinds = {"task_index": pa.int64()}
    texts = {"task": pa.string(), "__index_level_0__": pa.string()}  # how pandas stores an index without a name
    rows = read_columns(folder / schema.TASKS_PATH, kinds, texts)
    return {row["task_index"]: row["task"] or row["__index_level_0__"] or "" for row in rows}
