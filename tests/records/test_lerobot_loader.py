"""lerobot's own loader, editing tools and visualizer take our exports, and show the same numbers. Slow: they make an
environment of several GB.

With RL_LAB_LEROBOT_PYTHON, the interpreter of an environment that has lerobot[dataset_viz] 0.6.1, none is made. Below
Python 3.12 there is no lerobot newer than 0.4.4; with that the loader alone is tested.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from rl_lab.data import main
from rl_lab.records import lerobot_tables as schema
from rl_lab.records.lerobot_write import correction, write_lerobot
from rl_lab.records.robotwin import control_hz
from tests.support.episodes import episode, pair, read_folder
from tests.support.robotwin_files import write_classic

LEROBOT, OLD_LEROBOT = "lerobot[dataset_viz]==0.6.1", "lerobot==0.4.4"
LOAD = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
folder, out, keys = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
data = LeRobotDataset("local/set", root=folder, video_backend="pyav")
ahead = {"action": [0.0, 1 / data.fps, 2 / data.fps]}
chunks = LeRobotDataset("local/set", root=folder, video_backend="pyav", delta_timestamps=ahead)
frames = [data[number] for number in range(len(data))]
found = {name: np.stack([np.asarray(frame[name]) for frame in frames]) for name in keys}
found["task"] = np.array([frame["task"] for frame in frames])
found["chunk"] = np.stack([np.asarray(chunks[number]["action"]) for number in range(len(chunks))])
found["fps"], found["episodes"] = np.array(float(data.fps)), np.array(data.num_episodes)
found["mean"] = np.asarray(data.meta.stats["action"]["mean"])
np.savez(out, **found)
"""
EDIT = """
import sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets, split_dataset
folder, out = sys.argv[1:]
data = LeRobotDataset("local/set", root=folder, video_backend="pyav")
delete_episodes(data, [0, 3], output_dir=out + "/deleted", repo_id="local/deleted")
split_dataset(data, {"a": [0, 1], "b": [2, 3, 4]}, output_dir=out + "/split")
parts = [LeRobotDataset("local/" + name, root=f"{out}/split/{name}", video_backend="pyav") for name in "ab"]
merge_datasets(parts, output_repo_id="local/merged", output_dir=out + "/merged")
"""
KEYS = [schema.STATE, schema.ACTION, "timestamp", "episode_index", "frame_index", *schema.VIDEO_KEYS]


@pytest.fixture(scope="module")
def lerobot_python(tmp_path_factory) -> str:
    given = os.environ.get("RL_LAB_LEROBOT_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("lerobot")
    newer = shutil.which("python3.13") or shutil.which("python3.12")
    wanted = LEROBOT if newer or sys.version_info >= (3, 12) else OLD_LEROBOT
    if newer:
        subprocess.run([newer, "-m", "venv", folder], check=True)
    else:
        venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    done = subprocess.run([python, "-m", "pip", "install", "-q", wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {wanted} here: {done.stderr.strip().splitlines()[-1]}")
    return python


def run(python: str, tmp_path: Path, *arguments: object) -> str:
    """Run lerobot's interpreter without network; what it printed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = clean | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(python: str, folder: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    """What lerobot's loader reads from a dataset, frame by frame."""
    run(python, tmp_path, "-c", LOAD, folder, tmp_path / "found.npz", ",".join(KEYS))
    with np.load(tmp_path / "found.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def new_lerobot(lerobot_python, tmp_path_factory) -> str:
    """Its interpreter, where it is new enough to have the tools."""
    asked = "from importlib.metadata import version; print(version('lerobot'))"
    found = run(lerobot_python, tmp_path_factory.mktemp("asked"), "-c", asked).strip()
    if found.startswith("0.4."):
        pytest.skip(f"lerobot {found} is older than its tools; give Python 3.12")
    return lerobot_python


@pytest.mark.slow
@pytest.mark.parametrize("hz", [10, 12.5, control_hz()])
def test_lerobots_tools_delete_split_and_merge(new_lerobot, tmp_path, hz):
    written = [episode(seed, steps=steps) for seed, steps in enumerate((2, 15, 9, 30, 7))]
    write_lerobot(tmp_path / "set", written, hz)
    run(new_lerobot, tmp_path, "-c", EDIT, tmp_path / "set", tmp_path)
    kept = {"deleted": [1, 2, 4], "split/a": [0, 1], "split/b": [2, 3, 4], "merged": [0, 1, 2, 3, 4]}
    for name, numbers in kept.items():
        main(["validate", str(tmp_path / name)])
        actions = np.concatenate([written[number].actions for number in numbers])
        np.testing.assert_allclose(load(new_lerobot, tmp_path / name, tmp_path)["action"], actions, atol=1e-6)
        for read, number in zip(read_folder(tmp_path / name), numbers, strict=True):
            np.testing.assert_allclose(read.actions, written[number].actions, atol=1e-6)
            assert np.abs(read.images.astype(int) - written[number].images).max() <= 8, "encoded twice"


@pytest.mark.slow
def test_lerobots_visualizer_opens_an_export(new_lerobot, tmp_path):
    write_lerobot(tmp_path / "set", [episode(1), episode(2)], 12.5)
    where = ["--repo-id", "local/set", "--root", tmp_path / "set", "--output-dir", tmp_path / "shown"]
    command = ["lerobot.scripts.lerobot_dataset_viz", "--episode-index", 1, "--save", 1, "--num-workers", 0]
    run(new_lerobot, tmp_path, "-m", *command, *where)
    assert (tmp_path / "shown/local_set_episode_1.rrd").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["demonstrations", "robotwin", "corrections"])
def test_lerobots_loader_reads_what_we_wrote(lerobot_python, tmp_path, kind):
    if kind == "demonstrations":
        written, hz = [episode(1), episode(2, steps=9)], 12.5
    elif kind == "robotwin":
        for number in range(2):
            write_classic(tmp_path / "raw", number)
        written, hz = list(read_folder(tmp_path / "raw", image_size=64)), control_hz()
    else:
        written, hz = [correction(pair(1)), correction(pair(2))], 12.5
    write_lerobot(tmp_path / "set", written, hz)
    found = load(lerobot_python, tmp_path / "set", tmp_path)
    ours = list(read_folder(tmp_path / "set"))

    lengths = [each.num_steps for each in written]
    assert found["episodes"] == len(written) and found["fps"] == pytest.approx(hz)
    assert found["episode_index"].tolist() == np.repeat(range(len(written)), lengths).tolist()
    assert found["task"].tolist() == [each.instruction for each in written for _ in range(each.num_steps)]
    actions = np.concatenate([each.actions for each in written])
    np.testing.assert_allclose(found["action"], actions, atol=1e-6)
    np.testing.assert_allclose(found["mean"], actions.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found[schema.STATE], np.concatenate([each.poses[:-1] for each in written]), atol=1e-6)
    np.testing.assert_allclose(found["timestamp"], found["frame_index"] / hz, rtol=1e-6)
    for start, each in zip(np.cumsum([0, *lengths]), written, strict=False):
        rows = np.minimum(np.arange(each.num_steps)[:, None] + np.arange(3), each.num_steps - 1)
        np.testing.assert_allclose(found["chunk"][start : start + each.num_steps], each.actions[rows], atol=1e-6)
    for camera, key in enumerate(schema.VIDEO_KEYS):
        shown = np.moveaxis(found[key], 1, -1) * 255
        read = np.concatenate([each.images[:, camera] for each in ours])
        assert np.abs(shown - read).max() <= 3, "lerobot decodes to RGB in its own way, so by up to a few levels"
