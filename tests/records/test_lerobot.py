"""Episodes survive LeRobotDataset v3, and its files say what the format demands."""

import dataclasses
import json

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from rl_lab.common.errors import UserError
from rl_lab.records import lerobot_tables as schema
from rl_lab.records.checks import BrokenEpisodeError, read_frames
from rl_lab.records.lerobot_write import correction, write_lerobot
from tests.support.episodes import episode, images, pair, read_folder

HZ = 20


def sparse():
    """Images at the decisions of a policy only."""
    steps, whole = np.array([0, 4, 8]), episode(7)
    return dataclasses.replace(whole, frame_steps=steps, images=images(9)[steps] * 20, truth=whole.truth[steps])


@pytest.fixture
def dataset(tmp_path):
    episodes = [episode(1), dataclasses.replace(episode(2, steps=9), instruction="Put it down.")]
    assert write_lerobot(tmp_path / "set", episodes, HZ) == 2
    return tmp_path / "set", episodes


def assert_like(read, written):
    np.testing.assert_allclose(read.poses, written.poses, atol=1e-6)
    np.testing.assert_allclose(read.actions, written.actions, atol=1e-6)
    np.testing.assert_array_equal(read.frame_steps, written.frame_steps)
    np.testing.assert_array_equal(read.truth, written.truth)
    assert np.abs(read.images.astype(int) - written.images).max() <= 4
    for name in ("task", "variant", "seed", "instruction", "success", "num_steps", "extra", "weight_version"):
        assert getattr(read, name) == getattr(written, name), name


def test_a_dataset_has_a_card_for_hubs(dataset):
    card = DatasetCard.load(dataset[0] / "README.md")
    assert "LeRobot" in card.data.tags
    assert "2 episodes with" in card.text and "- Put it down." in card.text and "- `action`: float32 [16]" in card.text


def test_episodes_come_back(dataset):
    folder, episodes = dataset
    for read, written in zip(read_folder(folder), episodes, strict=True):
        assert_like(read, written)


def test_a_timestamp_that_is_no_number_is_a_wrong_rate(dataset):
    file = dataset[0] / "data/chunk-000/file-000.parquet"
    rows = pandas.read_parquet(file)
    rows.loc[3, "timestamp"] = np.nan
    rows.to_parquet(file)
    with pytest.raises(BrokenEpisodeError, match="wrong rate: timestamp nan"):
        list(read_folder(dataset[0]))


def test_the_table_of_episodes_finds_rows_and_frames(dataset):
    folder, _ = dataset
    first, second = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert (first["length"], second["length"], second["tasks"]) == (15, 9, ["Put it down."])
    assert (second["dataset_from_index"], second["dataset_to_index"]) == (15, 24)
    key = f"videos/{schema.VIDEO_KEYS[0]}"
    assert second[f"{key}/from_timestamp"] == first[f"{key}/to_timestamp"] == pytest.approx(15 / HZ)
    rows = pq.read_table(folder / "data/chunk-000/file-000.parquet").to_pandas()
    assert list(rows["index"]) == list(range(24)) and list(rows["task_index"]) == [0] * 15 + [1] * 9
    np.testing.assert_allclose(rows["timestamp"][15:], np.arange(9) / HZ, rtol=1e-6)


def test_tasks_are_the_index_of_their_table(dataset):
    tasks = pandas.read_parquet(dataset[0] / "meta/tasks.parquet")
    assert tasks.loc["Put it down."].task_index == 1 and tasks.index.name == "task"


def test_video_times_are_exact(dataset):
    times = [time for time, _ in read_frames(dataset[0] / f"videos/{schema.VIDEO_KEYS[1]}/chunk-000/file-000.mp4")]
    np.testing.assert_allclose(times, np.arange(24) / HZ, atol=1e-5)


@pytest.mark.parametrize("hz", [12.5, 250 / 15])
def test_at_a_fraction_of_a_hertz_every_episode_has_files_of_its_own(tmp_path, hz):
    episodes = [episode(seed, steps=steps) for seed, steps in enumerate((3, 15, 9))]
    write_lerobot(tmp_path / "set", episodes, hz)
    for number, written in enumerate(episodes):
        path = tmp_path / f"set/videos/{schema.VIDEO_KEYS[1]}/chunk-000/file-{number:03d}.mp4"
        np.testing.assert_allclose(
            [time for time, _ in read_frames(path)], np.arange(written.num_steps) / hz, atol=1e-5
        )
    for read, written in zip(read_folder(tmp_path / "set"), episodes, strict=True):
        assert_like(read, written)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_first_episode_may_be_shorter_than_the_encoders_delay(tmp_path, steps):
    episodes = [episode(1, steps=steps), episode(2)]
    write_lerobot(tmp_path / "set", episodes, HZ)
    for read, written in zip(read_folder(tmp_path / "set"), episodes, strict=True):
        assert_like(read, written)


def test_older_exports_keep_their_steps_of_images(tmp_path):
    write_lerobot(tmp_path / "set", [sparse()], HZ, hold_images=True)
    path, info = tmp_path / "set/data/chunk-000/file-000.parquet", tmp_path / "set/meta/info.json"
    table = pq.read_table(path)
    old = "observation.image_step"
    pq.write_table(table.rename_columns([old if name == "frame_step" else name for name in table.column_names]), path)
    info.write_text(info.read_text().replace('"frame_step"', f'"{old}"'))
    assert_like(next(read_folder(tmp_path / "set")), sparse())


def test_no_name_but_a_pictures_says_image(dataset):
    features = json.loads((dataset[0] / "meta/info.json").read_text())["features"]
    assert [name for name in features if "image" in name] == list(schema.VIDEO_KEYS)


def test_info_and_statistics_are_those_of_the_data(dataset):
    folder, episodes = dataset
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 2, 24)
    stats = json.loads((folder / "meta/stats.json").read_text())
    assert set(stats) == set(info["features"])
    actions = np.concatenate([each.actions for each in episodes])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(axis=0), atol=1e-6)
    assert stats["action"]["count"] == [24] and np.shape(stats[schema.VIDEO_KEYS[0]]["mean"]) == (3, 1, 1)


def test_a_correction_is_an_episode_that_says_what_it_corrected(tmp_path):
    write_lerobot(tmp_path / "set", [correction(pair(3))], 12.5)
    (read,) = read_folder(tmp_path / "set")
    assert_like(read, correction(pair(3)))
    assert read.extra["kind"] == "correction" and read.extra["trigger"] == "tipped"


def test_images_at_some_steps_only_are_held_when_asked(tmp_path):
    with pytest.raises(UserError, match="images at 3 of 15 steps"):
        write_lerobot(tmp_path / "set", [sparse()], 12.5)
    assert not (tmp_path / "set").exists()
    write_lerobot(tmp_path / "set", [sparse()], 12.5, hold_images=True)
    assert_like(next(read_folder(tmp_path / "set")), sparse())


def test_full_files_are_followed_by_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "VIDEO_MB", 0)
    monkeypatch.setattr(schema, "DATA_MB", 0)
    episodes = [episode(seed) for seed in range(3)]
    write_lerobot(tmp_path / "set", episodes, 10)
    assert len(list((tmp_path / "set/data/chunk-000").iterdir())) == 3
    for read, written in zip(read_folder(tmp_path / "set"), episodes, strict=True):
        assert_like(read, written)


def test_a_broken_episode_is_not_written(tmp_path):
    broken = episode(1)
    broken.poses[4] = np.nan
    with pytest.raises(BrokenEpisodeError, match="episode 1, frame 4: pose is not finite"):
        write_lerobot(tmp_path / "set", [episode(0), broken], 10)
    assert not (tmp_path / "set").exists()


def test_a_video_cut_short_breaks_its_episodes(dataset):
    folder, _ = dataset
    path = folder / f"videos/{schema.VIDEO_KEYS[2]}/chunk-000/file-000.mp4"
    path.write_bytes(path.read_bytes()[:500])
    problems = []
    assert list(read_folder(folder, problems.append)) == [] and len(problems) == 2


def test_another_version_or_shape_is_one_line(dataset):
    path = dataset[0] / "meta/info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(UserError, match=r"LeRobotDataset v2.1; convert it"):
        list(read_folder(dataset[0]))
    info["features"]["action"]["shape"] = [14]
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"action has shape \[14\], expected \[16\]"):
        list(read_folder(dataset[0]))
