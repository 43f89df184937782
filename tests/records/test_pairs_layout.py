"""Pairs survive the Parquet and video layout, other tools can read it, and what is broken in it is named."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algos.chunks import Timing
from envs.types import NO_FRAMES
from rl_lab.common.errors import UserError
from rl_lab.data import main
from rl_lab.records.action_batches import pair_states
from rl_lab.records.checks import BrokenEpisodeError
from rl_lab.records.episodes import read_pairs, write_episodes, write_pairs
from rl_lab.records.pairs import pair_reads, write_pairs_layout
from tests.support.episodes import episode, images, pair

HZ = 12.5


@pytest.fixture
def pairs():
    short = dataclasses.replace(pair(2, winner_steps=9, loser_steps=5), control_hz=10.0, correction_limit=90)
    for number, side in enumerate((short.winner, short.loser)):
        side.truth = np.random.default_rng(number).normal(size=(len(side.actions), 7)).astype(np.float32)
    other = dataclasses.replace(pair(3), instruction="Put it down.", before=30 + images(3))
    return [dataclasses.replace(pair(1), before=NO_FRAMES), short, other]


@pytest.fixture
def layout(tmp_path, pairs):
    assert write_pairs_layout(tmp_path / "set", pairs, HZ) == 3
    return tmp_path / "set"


def assert_same(read, written, image_error):
    for ours in ("winner", "loser"):
        for name in ("poses", "actions", "truth"):
            np.testing.assert_array_equal(getattr(getattr(read, ours), name), getattr(getattr(written, ours), name))
        seen, shown = getattr(read, ours).images.astype(int), getattr(written, ours).images
        assert seen.shape == shown.shape and np.abs(seen - shown).max() <= image_error
    if written.before is None or not len(written.before):
        assert (read.before is None) == (written.before is None)
    else:
        assert np.abs(read.before.astype(int) - written.before).max() <= image_error
    labels = [item.name for item in dataclasses.fields(read) if item.name not in ("winner", "loser", "before")]
    assert [getattr(read, name) for name in labels] == [getattr(written, name) for name in labels]


@pytest.mark.parametrize(("lossless", "image_error"), [(False, 4), (True, 0)])
def test_pairs_come_back_to_the_last_bit_of_their_numbers(tmp_path, pairs, lossless, image_error):
    write_pairs_layout(tmp_path / "set", pairs, HZ, lossless=lossless)
    for read, written in zip(pair_reads(tmp_path / "set"), pairs, strict=True):
        assert_same(read(), written, image_error)


def test_the_trainers_buffers_survive_a_round_trip_through_the_command(tmp_path, pairs, capsys):
    write_pairs(tmp_path / "lab", pairs)
    main(["convert", str(tmp_path / "lab"), str(tmp_path / "set"), "--to", "pairs", "--lossless"])
    main(["validate", str(tmp_path / "set")])
    assert capsys.readouterr().out.splitlines()[-1] == "3 pairs, no problems"
    main(["convert", str(tmp_path / "set"), str(tmp_path / "back"), "--to", "lab"])
    before, after = (pair_states(read_pairs(tmp_path / name), Timing(4), None) for name in ("lab", "back"))
    for name in ("frames", "seen", "poses", "winner", "loser", "identical", "pair"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_chosen_is_the_correction_and_both_sides_begin_alike(layout, pairs):
    rows = pq.read_table(layout / "pairs.parquet").to_pylist()
    data = pq.read_table(layout / "data/file-000.parquet").to_pandas()
    row, second = rows[1], pairs[1]
    chosen = data[row["chosen_from_row"] : row["chosen_to_row"]]
    rejected = data[row["rejected_from_row"] : row["rejected_to_row"]]
    assert set(chosen["side"]) == {"chosen"} and set(rejected["pair"]) == {1}
    np.testing.assert_array_equal(np.stack(chosen["action"][:-1]), second.winner.actions)
    np.testing.assert_array_equal(np.stack(rejected["observation.state"]), second.loser.poses)
    np.testing.assert_array_equal(chosen["observation.state"].iloc[0], rejected["observation.state"].iloc[0])
    assert chosen["action"].iloc[-1] is None and row["rejected_from_frame"] == row["chosen_from_frame"] + 9


def test_full_files_are_followed_by_new_ones(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr("rl_lab.records.pairs.FILE_STATES", 0)
    write_pairs_layout(tmp_path / "set", pairs, HZ)
    assert len(list((tmp_path / "set/videos/left_camera").iterdir())) == 3
    for read, written in zip(pair_reads(tmp_path / "set"), pairs, strict=True):
        assert_same(read(), written, 4)


def change_data(folder, edit):
    path = folder / "data/file-000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    pq.write_table(pa.Table.from_pylist(edit(rows), schema=table.schema), path)


def set_value(index, name, value):
    def edit(rows):
        rows[index][name] = value
        return rows

    return edit


BREAKS = {
    "nan": (set_value(4, "observation.state", [np.nan] * 16), "pair 0, chosen, frame 4: pose is not finite"),
    "quaternion": (set_value(23, "action", [2.0] * 16), "pair 0, rejected, frame 2: action of the left arm has a"),
    "no action": (set_value(3, "action", None), "pair 0, chosen, frame 3: an action is missing"),
    "another row": (set_value(3, "side", "rejected"), "pair 0, chosen: rows 0 to 21 are of another segment"),
    "cut": (lambda rows: rows[:20], "pair 0, chosen, frame 20: truncated: 20 of 21 rows"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_named_by_pair_side_and_step(layout, name, capsys):
    edit, words = BREAKS[name]
    change_data(layout, edit)
    with pytest.raises(UserError, match="of 3 pairs of .* are broken"):
        main(["validate", str(layout)])
    assert words in capsys.readouterr().out


def test_a_video_cut_short_is_named(layout, capsys):
    path = layout / "videos/right_camera/file-000.mp4"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match="3 of 3 pairs"):
        main(["validate", str(layout)])
    assert "broken or truncated" in capsys.readouterr().out


def test_sides_that_do_not_share_their_start_are_refused(tmp_path):
    apart = pair(1)
    apart.loser.poses[0, 0] += 0.01
    with pytest.raises(BrokenEpisodeError, match="pair 0, frame 0: chosen and rejected start 0.01 apart"):
        write_pairs_layout(tmp_path / "set", [apart], HZ)
    assert not (tmp_path / "set").exists()


def test_broken_pairs_are_left_out_only_when_asked(layout, tmp_path, capsys):
    change_data(layout, BREAKS["nan"][0])
    arguments = ["convert", str(layout), str(tmp_path / "lab"), "--to", "lab"]
    with pytest.raises(UserError, match="frame 4"):
        main(arguments)
    main([*arguments, "--skip-broken"])
    assert len(read_pairs(tmp_path / "lab")) == 2


def test_another_version_is_one_line(layout):
    path = layout / "pairs_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    with pytest.raises(UserError, match="this lab reads rl_lab.pairs version 3"):
        main(["validate", str(layout)])


def test_episodes_are_no_pairs(tmp_path):
    write_episodes(tmp_path / "lab", [episode(1)])
    with pytest.raises(UserError, match="holds episodes, not pairs"):
        main(["convert", str(tmp_path / "lab"), str(tmp_path / "set"), "--to", "pairs"])
