"""The command turns one format into another, and refuses what is broken with one line."""

import json
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from algos.smooth_interpolation import recorded_chunks
from envs.se3 import encode_pose, to_relative
from rl_lab.common.errors import UserError, run_command
from rl_lab.data import main
from rl_lab.records.episodes import read_episodes, write_episodes, write_pairs
from tests.support.episodes import episode, pair, read_folder
from tests.support.robotwin_files import write_classic, write_trajectory

SMALL = ["--image-size", "32"]


@pytest.fixture
def broken(tmp_path):
    """Three episodes, the second with a NaN in its fourth frame."""
    paths = [write_classic(tmp_path / "raw", number) for number in range(3)]
    with h5py.File(paths[1], "r+") as file:
        file["endpose/left_endpose"][3] = np.nan
    return tmp_path / "raw"


@pytest.mark.parametrize("write", [write_classic, write_trajectory])
def test_robotwin_becomes_lerobot_becomes_lab(tmp_path, write, capsys):
    write(tmp_path / "raw", 0)
    main(["convert", str(tmp_path / "raw"), str(tmp_path / "set"), *SMALL])
    main(["convert", str(tmp_path / "set"), str(tmp_path / "lab"), "--to", "lab"])
    (read,) = read_episodes(tmp_path / "lab")
    assert read.num_steps == 6 and read.images.shape == (6, 3, 32, 32, 3) and read.task == "handover_block"
    capsys.readouterr()
    main(["inspect", str(tmp_path / "lab")])
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["format"], shown["hz"], shown["steps"]) == ("lab", "16.6667", "6")
    assert shown["tasks"] == "{'handover_block/demo_clean': 1}"


def test_pairs_become_corrections(tmp_path):
    write_pairs(tmp_path / "pairs", [pair(1), pair(2)])
    main(["convert", str(tmp_path / "pairs"), str(tmp_path / "set")])
    assert [read.extra["kind"] for read in read_folder(tmp_path / "set")] == ["correction"] * 2
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["fps"] == 12.5


def test_sets_have_the_rate_of_the_simulator_that_made_them(tmp_path):
    write_pairs(tmp_path / "pairs", [replace(pair(1), control_hz=10.0)])
    write_episodes(tmp_path / "demos", [replace(episode(1), extra={"control_hz": 10.0})])
    for name in ("pairs", "demos"):
        main(["convert", str(tmp_path / name), str(tmp_path / f"{name}-set")])
        assert json.loads((tmp_path / f"{name}-set/meta/info.json").read_text())["fps"] == 10


def test_statistics_are_those_of_all_chunks(tmp_path, capsys):
    episodes = [episode(1), episode(2, steps=9)]
    write_episodes(tmp_path / "lab", episodes)
    main(["stats", str(tmp_path / "lab"), "--horizon", "3", "--stride", "2"])
    shown = json.loads(capsys.readouterr().out)
    chunks = [recorded_chunks(each.actions, each.frame_steps, 6)[:, 1::2] for each in episodes]
    states = [each.poses[:-1] for each in episodes]
    relative = np.concatenate([to_relative(*both) for both in zip(chunks, states, strict=True)])
    np.testing.assert_allclose(shown["action_mean"], relative.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(shown["action_std"], relative.std(axis=0), atol=1e-12)
    np.testing.assert_allclose(shown["qpos_std"], encode_pose(np.concatenate(states)).std(axis=0), atol=1e-12)
    assert np.shape(shown["action_mean_abs"]) == (3, 20) and shown["states"] == 24


def test_validate_names_every_problem(broken, capsys):
    with pytest.raises(UserError, match="1 of 3 episodes"):
        main(["validate", str(broken), *SMALL])
    (line,) = capsys.readouterr().out.splitlines()
    assert "episode1.hdf5, frame 3: pose is not finite" in line
    with pytest.raises(UserError, match="does not exist"):
        main(["validate", str(broken / "nowhere")])


def test_broken_episodes_are_left_out_only_when_asked(broken, tmp_path, capsys):
    arguments = ["convert", str(broken), str(tmp_path / "set"), *SMALL]
    with pytest.raises(UserError, match="frame 3"):
        main(arguments)
    assert not (tmp_path / "set").exists()
    main([*arguments, "--skip-broken"])
    assert len(list(read_folder(tmp_path / "set"))) == 2
    assert "skipped: " in capsys.readouterr().err


def test_what_is_there_is_not_replaced(tmp_path):
    write_classic(tmp_path / "raw", 0)
    with pytest.raises(UserError, match="is there already"):
        main(["convert", str(tmp_path / "raw"), str(tmp_path), *SMALL])


@pytest.mark.parametrize("arguments", [["inspect", "{}"], ["stats", "{}", "--horizon", "0"], ["convert", "{}"], []])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main([text.format(tmp_path) for text in arguments]))
    said = capsys.readouterr()
    assert ended.value.code == 2 and len(said.err.splitlines()) == 1 and said.out == ""


def test_bad_input_is_one_line_of_a_process_too(tmp_path):
    done = subprocess.run([sys.executable, "-m", "rl_lab.data", "inspect", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == ""
