"""RoboTwin's demonstrations come in whole and right, or are refused by episode and frame."""

import h5py
import numpy as np
import pytest

from rl_lab.common.errors import UserError
from rl_lab.records.checks import BrokenEpisodeError
from rl_lab.records.robotwin import control_hz, find_episodes
from rl_lab.records.sources import find_recordings, open_source, read_index
from tests.support.episodes import poses, read_folder
from tests.support.robotwin_files import COLOUR, write_classic, write_trajectory

WRITERS = {"classic": write_classic, "trajectory": write_trajectory}


@pytest.fixture(params=WRITERS)
def layout(request):
    return request.param


def read(root, **options):
    return list(read_folder(root, image_size=32, **options))


def change(path, key, edit):
    with h5py.File(path, "r+") as file:
        values = edit(file[key][()])
        del file[key]
        if values is not None:
            file[key] = values


def test_both_layouts_become_the_same_episode(tmp_path, layout):
    WRITERS[layout](tmp_path, 1)
    (episode,) = read(tmp_path)
    np.testing.assert_allclose(episode.poses, poses(6, 1), atol=1e-6)
    np.testing.assert_array_equal(episode.actions, episode.poses[1:])
    assert (episode.task, episode.variant, episode.num_steps) == ("handover_block", "demo_clean", 6)
    assert episode.instruction == ("Pass it." if layout == "classic" else "Hand it over.")
    assert episode.seed == (107 if layout == "classic" else 1)
    assert episode.extra["control_hz"] == pytest.approx(250 / 15) == control_hz()


def test_colours_are_rgb_in_both_layouts_and_pictures_keep_their_proportions(tmp_path, layout):
    WRITERS[layout](tmp_path, 0)
    (episode,) = read(tmp_path)
    assert episode.images.shape == (6, 3, 32, 32, 3)
    np.testing.assert_allclose(episode.images[3, :, 8, 16], np.tile(COLOUR, (3, 1)), atol=6)
    np.testing.assert_allclose(episode.images[3, 0, 24, 16], [12] * 3, atol=6)
    assert episode.images[:, :, :4].max() == 0 and episode.images[:, :, 28:].max() == 0


def test_episodes_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 0):
        write_classic(tmp_path, number)
    assert [file.number for file in find_episodes(tmp_path)] == [0, 2, 10]


def pose_key(layout):
    return "endpose/right_endpose" if layout == "classic" else "state/right_ee_poses"


def image_key(layout):
    return "observation/left_camera/rgb" if layout == "classic" else "vision/cam_left_wrist/colors"


def set_row(row, value):
    def edit(values):
        values[row] = value
        return values

    return edit


BREAKS = {
    "nan": (pose_key, set_row(3, np.nan), 3, "not finite"),
    "quaternion": (pose_key, lambda v: v * np.where(np.arange(len(v)) == 2, 1.5, 1.0)[:, None], 2, "norm 1.5"),
    "fewer poses": (pose_key, lambda v: v[:4], 4, "truncated"),
    "columns": (pose_key, lambda v: v[:, :6], None, "6 columns"),
    "no poses": (pose_key, lambda v: None, None, "missing"),
    "no camera": (image_key, lambda v: None, None, "camera missing"),
    "fewer images": (image_key, lambda v: v[:4], 4, "truncated"),
    "bad jpeg": (image_key, set_row(1, b"\xff\xd8nothing"), 1, "cannot be decoded"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_named_by_episode_and_frame(tmp_path, layout, name):
    key, edit, frame, words = BREAKS[name]
    path = WRITERS[layout](tmp_path, 0)
    change(path, key(layout), edit)
    with pytest.raises(BrokenEpisodeError) as caught:
        read(tmp_path)
    problem = caught.value.problems[0]
    assert problem.episode == str(path) and problem.frame == frame and words in problem.text


def test_a_file_cut_short_is_a_broken_episode(tmp_path, layout):
    path = WRITERS[layout](tmp_path, 0)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BrokenEpisodeError, match="broken or truncated"):
        read(tmp_path)


def test_a_wrong_rate_is_refused_and_a_named_one_is_taken(tmp_path):
    path = write_trajectory(tmp_path, 0)
    change(path, "additional_info/frequency", lambda _: np.int32(10))
    with pytest.raises(BrokenEpisodeError, match="wrong rate: additional_info/frequency is 10, expected save_freq 15"):
        read(tmp_path)
    (episode,) = read(tmp_path, save_freq=10)
    assert episode.extra["control_hz"] == 25


def test_an_episode_without_instruction_is_broken(tmp_path):
    path = write_trajectory(tmp_path, 0)
    change(path, "instruction", lambda _: None)
    with pytest.raises(BrokenEpisodeError, match="no instruction"):
        read(tmp_path)


def test_broken_episodes_are_left_out_only_when_asked_and_reported(tmp_path, layout):
    paths = [WRITERS[layout](tmp_path, number) for number in range(3)]
    change(paths[1], pose_key(layout), set_row(3, np.nan))
    with pytest.raises(BrokenEpisodeError):
        read(tmp_path)
    problems = []
    assert len(read(tmp_path, report=problems.append)) == 2
    assert [problem.episode for problem in problems] == [str(paths[1])]


def test_a_folder_without_episodes_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no episode0.hdf5 .* meta/info.json"):
        find_recordings([tmp_path], image_size=32, save_freq=15, split="seen")


def test_episodes_in_linked_folders_are_found_with_their_names_and_sources(tmp_path, layout):
    WRITERS[layout](tmp_path / "disk", 0)
    WRITERS[layout](tmp_path / "disk", 1)
    (tmp_path / "data").mkdir()
    for child in (tmp_path / "disk").iterdir():
        (tmp_path / "data" / child.name).symlink_to(child)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    found = find_episodes(tmp_path / "data")
    assert [(file.number, file.task, file.variant) for file in found] == [
        (number, "handover_block", "demo_clean") for number in (0, 1)
    ]
    source = open_source(tmp_path / "data", image_size=32, save_freq=15, split="seen")
    assert (source.format, len(source.reads)) == ("robotwin", 2)
    recordings, _ = find_recordings([tmp_path / "data"], image_size=32, save_freq=15, split="seen")
    assert [recording.read()[1] for recording in recordings] == [[], []]


INDEX_HEAD = "episode_dir,hdf5_name,instruction_name,num_frames,is_dirty\n"


def test_episodes_that_the_authors_index_calls_dirty_are_left_out(tmp_path):
    for number in range(3):
        write_classic(tmp_path / "data", number)
    rows = [f"handover_block/demo_clean,data/episode_{n}.hdf5,x.json,7,{int(n == 1)}\n" for n in range(3)]
    index = tmp_path / "index.csv"
    index.write_text(INDEX_HEAD + "".join(rows))
    options = {"image_size": 32, "save_freq": 15, "split": "seen", "index": index}
    kept, _ = find_recordings([tmp_path / "data"], **options)
    assert [recording.path.name for recording in kept] == ["episode0.hdf5", "episode2.hdf5"]
    index.write_text(INDEX_HEAD + "".join(rows[:2]))
    with pytest.raises(UserError, match=r"episode2.hdf5 is not in the index .*index.csv; name RoboTwin's own folders"):
        find_recordings([tmp_path / "data"], **options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks the columns episode_dir, hdf5_name, is_dirty"),
        ("episode_dir,is_dirty\n", "lacks the columns hdf5_name"),
        (INDEX_HEAD + "a/b,data/episode_0.hdf5,x.json,7,yes\n", "line 2: expected"),
        (INDEX_HEAD + "a/b,data/film.hdf5,x.json,7,0\n", "line 2: expected"),
        (INDEX_HEAD + "a/b\n", "line 2: expected"),
    ],
)
def test_a_file_that_is_no_index_is_refused(tmp_path, text, said):
    path = tmp_path / "index.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_index(path)
