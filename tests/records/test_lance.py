"""The UMI recordings in Lance tables: read as their authors' loader reads them, in RoboTwin's frames."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from envs.se3 import UMI_STROKE_MM, robotwin_from_umi, split_arms, umi_from_robotwin
from rl_lab.common.errors import UserError
from rl_lab.records import lance_read
from rl_lab.records.checks import BrokenEpisodeError
from rl_lab.records.sources import find_recordings, open_source
from tests.support.episodes import episode

LENGTHS = (5, 4)
OPTIONS = {"image_size": 16, "save_freq": 15, "split": "seen"}


def umi_rows(ee: np.ndarray) -> np.ndarray:
    """Poses of RoboTwin as an `observation_state` [n, 16] of the recordings: quaternions are xyzw."""
    arms = split_arms(umi_from_robotwin(ee))
    return np.concatenate([arms[..., :3], arms[..., 4:7], arms[..., 3:4], arms[..., 7:]], axis=-1).reshape(len(ee), 16)


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), (value, 0, 0)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_table(folder: Path, drop: str | None = None) -> list[np.ndarray]:
    """Two episodes of a table; their poses in RoboTwin's frames."""
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    poses = [episode(number, steps=length - 1).poses for number, length in enumerate(LENGTHS)]
    starts, total = np.cumsum([0, *LENGTHS]), sum(LENGTHS)
    states = np.concatenate([umi_rows(one) for one in poses])
    columns = {
        "observation_state": pa.FixedSizeListArray.from_arrays(pa.array(states.ravel(), pa.float64()), 16),
        "action": pa.FixedSizeListArray.from_arrays(pa.array(np.tile([0.0, 90.0], total), pa.float64()), 2),
        "episode_index": pa.array(np.repeat([0, 1], LENGTHS)),
        "task_index": pa.array(np.repeat([3, 7], LENGTHS)),
    }
    columns |= {name: pa.array([jpeg(20 * row) for row in range(total)]) for name in lance_read.PICTURES}
    columns.pop(drop, None)
    lance.write_dataset(pa.table(columns), str(folder / f"{folder.name}.lance"))
    meta = folder / "meta"
    (meta / "episodes/chunk-000").mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps({"fps": 30, "total_episodes": 2}))
    found = {"episode_index": [0, 1], "dataset_from_index": starts[:-1], "dataset_to_index": starts[1:]}
    pq.write_table(pa.table(found), meta / "episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [3, 7], "task": ["fold it", "pour it"]}), meta / "tasks.parquet")
    return poses


def test_umi_and_robotwin_are_each_others_inverse():
    poses = episode(1, steps=3).poses
    found = robotwin_from_umi(umi_from_robotwin(poses))
    signs = np.sign((split_arms(found)[..., 3:7] * split_arms(poses)[..., 3:7]).sum(-1, keepdims=True))
    arms = split_arms(found) * np.concatenate([np.ones((4, 2, 3)), signs.repeat(4, -1), np.ones((4, 2, 1))], -1)
    np.testing.assert_allclose(arms, split_arms(poses), atol=1e-12)
    assert robotwin_from_umi(np.array([*[0.0] * 6, 1.0, UMI_STROKE_MM] * 2))[7] == 0, "90 mm closed"


@pytest.mark.parametrize("named", ["table_000", ""])
def test_a_table_is_read_in_robotwins_frames(tmp_path, named):
    poses = write_table(tmp_path / "table_000")
    found, hz = find_recordings([tmp_path / named], **OPTIONS)
    assert hz == 30 and [one.problems() for one in found] == [[], []]
    for recording, expected, told in zip(found, poses, ("fold it", "pour it"), strict=True):
        read, problems = recording.read()
        assert not problems and read is not None and read.instruction == told and recording.place() is None
        assert read.num_steps == len(expected) - 1 == len(read.images)
        np.testing.assert_allclose(split_arms(read.poses)[..., :3], split_arms(expected)[..., :3], atol=1e-9)
        np.testing.assert_allclose(read.poses[:, 7], expected[:, 7], atol=1e-9)
        same = np.abs((split_arms(read.poses)[..., 3:7] * split_arms(expected)[..., 3:7]).sum(-1))
        np.testing.assert_allclose(same, 1, atol=1e-9)
        np.testing.assert_array_equal(read.actions[:, :7], read.poses[1:, :7])
        assert (read.actions[:, 7] == 1).all() and (read.actions[:, 15] == 0).all(), "as commanded, open and closed"
    image = found[1].load().images[1]
    assert image.shape == (3, 16, 16, 3) and abs(int(image[0, 8, 8, 0]) - 20 * (LENGTHS[0] + 1)) < 4
    source = open_source(tmp_path / named, **OPTIONS)
    assert source.format == "umi" and len(source.reads) == 2


def test_what_is_wrong_with_a_table_is_one_line(tmp_path, monkeypatch):
    write_table(tmp_path / "bare", drop="action")
    with pytest.raises(UserError, match="has no column action; it is none of the UMI recordings"):
        find_recordings([tmp_path / "bare"], **OPTIONS)
    write_table(tmp_path / "short")
    rows = {"episode_index": [0], "dataset_from_index": [0], "dataset_to_index": [LENGTHS[0] + 1]}
    pq.write_table(pa.table(rows), tmp_path / "short/meta/episodes/chunk-000/file-000.parquet")
    (recording,) = find_recordings([tmp_path / "short"], **OPTIONS)[0]
    with pytest.raises(BrokenEpisodeError, match=r"its 6 rows are of the episodes \[0, 1\]"):
        recording.load()
    with pytest.raises(UserError, match="of UMI recordings: two arms as poses"):
        find_recordings([tmp_path / "short"], numbers="joints", **OPTIONS)


def test_without_pylance_a_table_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "table/table.lance").mkdir(parents=True)
    monkeypatch.setattr(lance_read.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="is a Lance table, which pylance reads; run pip install pylance==14.0.2"):
        find_recordings([tmp_path], **OPTIONS)
