"""Names, paths, features and statistics of a LeRobotDataset v3, as this lab writes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.types import ARMS, CAMERAS, EE_DIM

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
VIDEO_KEYS = tuple(f"observation.images.{camera}" for camera in CAMERAS)
LABELS = "rl_lab/labels"
"""Our column of the episodes table: everything of an `Episode` that the format has no place for, as JSON."""
EE_NAMES = [f"{arm}_{name}" for arm in ARMS for name in ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")]
INDEX_NAMES = ("frame_index", "episode_index", "index", "task_index")
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def features(side: int, fps: float) -> dict[str, Any]:
    """The `features` of info.json for three square videos, 16 `ee` numbers of state and of action."""
    vector = {"dtype": "float32", "shape": [EE_DIM], "names": EE_NAMES}
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
        STATE: vector,
        ACTION: vector,
        FRAME_STEP: scalar | {"dtype": "int64"},
        **{key: image for key in VIDEO_KEYS},
        "timestamp": scalar | {"dtype": "float32"},
        **{name: scalar | {"dtype": "int64"} for name in INDEX_NAMES},
    }


Stats = dict[str, dict[str, list]]


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
