"""Datasets as lerobot and others write them: read by their rows and videos, or refused by name."""

import json
import re
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_lab.common.errors import UserError
from rl_lab.records import lerobot_tables as schema
from rl_lab.records.checks import BrokenEpisodeError
from rl_lab.records.lerobot_read import read_images
from rl_lab.records.lerobot_write import write_lerobot
from tests.support.episodes import episode, read_folder
from tests.support.refusals import refusal

HZ = 10
EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"


@pytest.fixture
def dataset(tmp_path):
    write_lerobot(tmp_path / "set", [episode(1, steps=6)], HZ)
    return tmp_path / "set"


def change_table(path, **columns):
    """Replace columns, or drop those that are None."""
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)


def change_info(folder, **values):
    path = folder / schema.INFO_PATH
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def film(folder, camera, size, hz=HZ, codec="libx264", frames=6):
    """The video of a camera anew: [height, width], brightness 10 times the number of the frame."""
    path = folder / schema.VIDEO_PATH.format(video_key=schema.VIDEO_KEYS[camera], chunk_index=0, file_index=0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(hz))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, 1 / Fraction(hz)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def first(folder, **options):
    return next(read_folder(folder, **options))


def test_the_task_index_of_the_rows_is_the_instruction(dataset):
    tasks = pa.table({"task_index": [0, 1], "task": ["Do this.", "Do that."]})
    pq.write_table(tasks, dataset / schema.TASKS_PATH)
    change_table(dataset / EPISODES, tasks=None, **{schema.LABELS: None})
    change_table(dataset / DATA, task_index=[1] * 6)
    assert first(dataset).instruction == "Do that."


def test_an_episode_of_two_tasks_is_refused_by_name(dataset):
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["Do this.", "Do that."]}), dataset / schema.TASKS_PATH)
    change_table(dataset / EPISODES, **{schema.LABELS: None})
    change_table(dataset / DATA, task_index=[0, 0, 0, 1, 1, 1])
    with pytest.raises(BrokenEpisodeError, match="episode 0: has 2 tasks .'Do this.', 'Do that.'., expected one"):
        first(dataset)


def test_cameras_of_other_sizes_become_squares_of_one(dataset):
    film(dataset, 0, (48, 64))
    film(dataset, 2, (96, 128))
    seen = first(dataset, image_size=32)
    assert seen.images.shape == (6, 3, 32, 32, 3)
    assert seen.images[5, 0, :3].max() == 0 and abs(int(seen.images[5, 0, 16, 16, 0]) - 50) < 6
    np.testing.assert_array_equal(read_images(dataset, 0, np.array([5]), 32)[0], seen.images[5])


def test_a_video_of_a_multiple_of_the_rate_is_read_by_its_times(dataset):
    for camera in range(3):
        film(dataset, camera, (64, 64), hz=3 * HZ, frames=18)
    brightness = first(dataset).images[:4, :, 32, 32, 0].astype(int)
    np.testing.assert_allclose(brightness, 30 * np.arange(4)[:, None] * np.ones((1, 3)), atol=6)


def test_a_video_of_another_rate_is_refused(dataset):
    film(dataset, 1, (64, 64), hz=12)
    with pytest.raises(BrokenEpisodeError, match="frame 1: truncated or of another rate: .* at 10 Hz"):
        first(dataset)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
def test_codecs_that_lerobot_writes_are_read(dataset, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    for camera in range(3):
        film(dataset, camera, (64, 64), codec=codec)
    np.testing.assert_allclose(first(dataset).images[:, 0, 32, 32, 0].astype(int), 10 * np.arange(6), atol=8)


@pytest.mark.parametrize("fps", [0, -3, "ten", None, 1e9, True])
def test_a_rate_that_is_none_is_one_line(dataset, fps):
    change_info(dataset, fps=fps)
    with pytest.raises(UserError, match=r"info.json: fps"):
        first(dataset)


def feature(folder, key, **values):
    features = json.loads((folder / schema.INFO_PATH).read_text())["features"]
    change_info(folder, features=features | {key: features[key] | values})


REFUSED = {
    "pictures are in Parquet": lambda folder: feature(folder, schema.VIDEO_KEYS[0], dtype="image"),
    "info.json: action has shape .3., expected .16.": lambda folder: feature(folder, schema.ACTION, shape=[3]),
    "is a depth map": lambda folder: feature(folder, schema.VIDEO_KEYS[1], info={"video.is_depth_map": True}),
    "holds 1 episodes, 1 of them different, but meta/info.json says 2": lambda f: change_info(f, total_episodes=2),
    "is no path of a v3 dataset": lambda folder: change_info(folder, data_path="data/{chunk}.parquet"),
    "has no column length": lambda folder: change_table(folder / EPISODES, length=None),
    "length is null in 1 rows": lambda folder: change_table(folder / EPISODES, length=pa.array([None], pa.int64())),
    "cannot be read: 'utf-8' codec can't decode": lambda folder: change_table(
        folder / EPISODES, **{schema.LABELS: pa.array([b"\xff\xfe"]).view(pa.string())}
    ),
    "meta/tasks.parquet cannot be read": lambda folder: (folder / schema.TASKS_PATH).unlink(),
    "column timestamp is missing": lambda folder: change_table(folder / DATA, timestamp=None),
    "observation.state has shape .6, 14., expected .6, 16.": lambda folder: change_table(
        folder / DATA, **{"observation.state": [[0.1] * 14] * 6}
    ),
    "success: Input should be a valid boolean": lambda folder: change_table(
        folder / EPISODES, **{schema.LABELS: ['{"success": "yes"}']}
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(dataset, words):
    REFUSED[words](dataset)
    said = refusal(first, dataset)
    assert re.search(words, said) and str(dataset) in said
