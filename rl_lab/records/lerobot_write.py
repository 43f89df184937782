"""Episodes -> LeRobotDataset v3: one row a control step, three videos, statistics; lerobot's own tools open it.

State is the measured `ee` pose before the step, action the command as environments run it (`envs.commands.executed`),
both as 32-bit floats; simulator truth stands with the labels of the episode. An episode whose images were taken at some
steps only (a policy's decisions) is refused, or images are held until the next one and `frame_step` says from when.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from envs.commands import executed
from envs.types import BIMANUAL, Episode, Layout, PreferencePair
from rl_lab.common.errors import UserError
from rl_lab.common.files import CARD_FILE, write_folder
from rl_lab.records import lerobot_tables as schema
from rl_lab.records.checks import BrokenEpisodeError, VideoWriter, episode_problems
from rl_lab.records.labels import labels_of


def correction(pair: PreferencePair) -> Episode:
    """The winner of a pair as an episode of its own; what it corrected stands in `extra`."""
    winner = pair.winner
    about = {
        name: getattr(pair, name) for name in ("start_step", "trigger_step", "trigger", "corrector", "start_digest")
    }
    return Episode(
        task=pair.task,
        variant=pair.variant,
        seed=pair.seed,
        instruction=pair.instruction,
        success=False,  # a segment ends where it was cut, which is not the end of the task
        num_steps=len(winner.actions),
        poses=winner.poses,
        actions=winner.actions,
        frame_steps=np.arange(len(winner.actions)),
        images=winner.images,
        weight_version=pair.weight_version,
        layout=pair.layout,
        truth=winner.truth,
        extra={"kind": "correction"} | about,
    )


def _vectors(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


class _Writer:
    """Fills a folder, episode by episode; files are closed when they are full."""

    def __init__(self, folder: Path, hz: float, hold_images: bool) -> None:
        self.folder, self.hz, self.hold_images = folder, hz, hold_images
        self.side = 0
        self.layout: Layout | None = None
        self.tasks: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.num_frames = self.file_number = 0
        self.tables: list[pa.Table] = []
        self.videos: dict[str, VideoWriter] = {}
        self.open_files = ExitStack()

    def location(self) -> dict[str, int]:
        chunk_index, file_index = divmod(self.file_number, schema.CHUNK_SIZE)
        return {"chunk_index": chunk_index, "file_index": file_index}

    def held_frames(self, name: str, episode: Episode) -> np.ndarray:
        """For each step the number of the image shown at it, [T]."""
        held = np.searchsorted(episode.frame_steps, np.arange(len(episode.actions)), side="right") - 1
        if held[0] < 0:
            raise UserError(f"{name} has no image at step 0; such episodes cannot be exported")
        if not self.hold_images and len(np.unique(held)) < len(held):
            raise UserError(
                f"{name} has images at {len(episode.frame_steps)} of {len(held)} steps; export episodes with one a "
                "step, or show each until the next with --hold-images"
            )
        return held

    def add(self, name: str, episode: Episode) -> None:
        """Append one episode."""
        problems = episode_problems(name, episode)
        if problems:
            raise BrokenEpisodeError(problems)
        side = episode.images.shape[-2]
        self.side = self.side or side
        if side != self.side or side % 2:
            raise UserError(f"{name} has images of side {side}; all must be of one even side (first: {self.side})")
        self.layout = self.layout or episode.layout
        if episode.layout != self.layout:
            raise UserError(f"{name} has {episode.layout}; all must be as the first, which has {self.layout}")
        held = self.held_frames(name, episode)
        task = self.tasks.setdefault(episode.instruction, len(self.tasks))
        number, steps, start = len(self.rows), len(held), self.num_frames
        columns = {
            schema.STATE: _vectors(episode.poses[:-1]),
            schema.ACTION: _vectors(executed(episode.actions) if episode.layout.numbers == "ee" else episode.actions),
            schema.FRAME_STEP: pa.array(episode.frame_steps[held], pa.int64()),
            "timestamp": pa.array((np.arange(steps) / self.hz).astype(np.float32)),
            "frame_index": pa.array(np.arange(steps), pa.int64()),
            "episode_index": pa.array(np.full(steps, number), pa.int64()),
            "index": pa.array(np.arange(start, start + steps), pa.int64()),
            "task_index": pa.array(np.full(steps, task), pa.int64()),
        }
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.instruction], "length": steps}
        row |= {f"data/{key}": value for key, value in self.location().items()}
        row |= {"dataset_from_index": start, "dataset_to_index": start + steps}
        stats = {
            key: schema.vector_stats(np.stack(column.to_numpy(zero_copy_only=False))) for key, column in columns.items()
        }
        for camera, key in enumerate(schema.video_keys(episode.layout.cameras)):
            row |= self.append_video(key, episode.images[held, camera])
            stats[key] = schema.image_stats(episode.images[:, camera])
        row |= {f"stats/{key}/{name}": value for key, each in stats.items() for name, value in each.items()}
        labels = labels_of(episode) | {"final_pose": episode.poses[-1].tolist()}
        labels |= {} if episode.truth is None else {schema.TRUTH: episode.truth[np.unique(held)].tolist()}
        row[schema.LABELS] = json.dumps(labels, default=float)
        self.rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self.tables.append(pa.table(columns))
        self.num_frames += steps
        self.close_full_files()

    def append_video(self, key: str, images: np.ndarray) -> dict[str, Any]:
        """Add the images to the current file of a camera; where they lie."""
        if key not in self.videos:
            path = self.folder / schema.VIDEO_PATH.format(video_key=key, **self.location())
            self.videos[key] = self.open_files.enter_context(VideoWriter(path, self.hz, self.side))
        video = self.videos[key]
        start = video.num_frames
        for image in images:
            video.append(image)
        place: dict[str, Any] = {f"videos/{key}/{name}": value for name, value in self.location().items()}
        times = {"from_timestamp": start / self.hz, "to_timestamp": video.num_frames / self.hz}
        return place | {f"videos/{key}/{name}": value for name, value in times.items()}

    def close_full_files(self) -> None:
        """Begin new files where these are large, or hold an episode at a fraction of a hertz: LeRobot's tools cut files
        at whole rates only, and copy them whole where they hold nothing else."""
        video_bytes = max(video.num_bytes for video in self.videos.values())
        data_bytes = sum(table.nbytes for table in self.tables)
        is_large = video_bytes > schema.VIDEO_MB * 2**20 or data_bytes > schema.DATA_MB * 2**20
        if is_large or not float(self.hz).is_integer():
            self.close_files()

    def close_files(self) -> None:
        """Finish the current data file and its videos."""
        self.open_files.close()
        if self.tables:
            path = self.folder / schema.DATA_PATH.format(**self.location())
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(self.tables), path)
            self.file_number += 1
        self.tables, self.videos = [], {}

    def finish(self) -> None:
        """Write what is left and the tables about the whole."""
        self.close_files()
        if not self.rows:
            raise UserError("there are no episodes to write")
        path = self.folder / schema.EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.rows), path)
        pq.write_table(_task_table(self.tasks), self.folder / schema.TASKS_PATH)
        layout = self.layout or BIMANUAL
        fps = int(self.hz) if float(self.hz).is_integer() else self.hz
        info = {
            "codebase_version": schema.VERSION,
            "robot_type": "bimanual_ee" if layout.is_like(BIMANUAL) else layout.numbers,
            "total_episodes": len(self.rows),
            "total_frames": self.num_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": schema.CHUNK_SIZE,
            "data_files_size_in_mb": schema.DATA_MB,
            "video_files_size_in_mb": schema.VIDEO_MB,
            "fps": fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": schema.DATA_PATH,
            "video_path": schema.VIDEO_PATH,
            "features": schema.features(self.side, fps, layout),
        }
        (self.folder / schema.INFO_PATH).write_text(json.dumps(info, indent=4))
        parts = ("min", "max", "mean", "std", "count", *schema.QUANTILES)
        stats = {
            key: schema.pooled_stats([{part: row[f"stats/{key}/{part}"] for part in parts} for row in self.rows])
            for key in info["features"]  # type: ignore[attr-defined]
        }
        (self.folder / schema.STATS_PATH).write_text(json.dumps(stats, indent=4))
        (self.folder / CARD_FILE).write_text(str(_card(info, list(self.tasks))))


def _card(info: dict[str, Any], tasks: list[str]) -> DatasetCard:
    """The card of a dataset, with the tags by which hubs know LeRobot's; whoever shares it chooses a licence."""
    data = DatasetCardData(
        task_categories=["robotics"],
        tags=["LeRobot", "rl-lab"],
        configs=[{"config_name": "default", "data_files": "data/*/*.parquet"}],
    )
    features = "\n".join(f"- `{name}`: {row['dtype']} {list(row['shape'])}" for name, row in info["features"].items())
    return DatasetCard(
        f"---\n{data.to_yaml()}\n---\n\n# Episodes as a LeRobotDataset {info['codebase_version']}\n\n"
        f"{info['total_episodes']} episodes with {info['total_frames']} steps at {info['fps']} Hz, written by rl-lab. "
        "What the simulator knew of each stands with its labels.\n\n"
        f"Instructions:\n\n{chr(10).join(f'- {task}' for task in tasks)}\n\nFeatures:\n\n{features}\n"
    )


def _task_table(tasks: dict[str, int]) -> pa.Table:
    """Task index by instruction; pandas reads the instructions as the index, as LeRobot expects."""
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), "task": pa.array(list(tasks))})
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def write_lerobot(folder: Path, episodes: Iterable[Episode], hz: float, *, hold_images: bool = False) -> int:
    """Write a dataset, whole or not at all; the number of its episodes. UserError if one does not fit the format."""
    count = 0

    def fill(partial: Path) -> None:
        nonlocal count
        writer = _Writer(partial, hz, hold_images)
        with writer.open_files:
            for number, episode in enumerate(episodes):
                writer.add(f"episode {number}", episode)
                count += 1
            writer.finish()

    write_folder(folder, fill)
    return count
