"""LeRobotDatasets of any robot: as many numbers and cameras as their features say, which are declared, not guessed."""

import json

import numpy as np
import pytest

from envs.types import Episode, Layout
from rl_lab.common.errors import UserError
from rl_lab.config.actions import FilesConfig, SFTConfig
from rl_lab.config.section import ModelConfig
from rl_lab.learner.actions import SFTPlan
from rl_lab.model.checkpoint import load_policy
from rl_lab.records.episodes import write_episodes
from rl_lab.records.lerobot_tables import INFO_PATH
from rl_lab.records.lerobot_write import write_lerobot
from rl_lab.records.sources import find_recordings
from tests.support.trainings import trained

SO100 = Layout("joints", 6, 6, ("front", "wrist"))


def episode(number: int, layout: Layout = SO100, steps: int = 5) -> Episode:
    generator = np.random.default_rng(number)
    shape = (steps, len(layout.cameras), 64, 64, 3)
    return Episode(
        task="pick",
        variant="",
        seed=number,
        instruction="Pick up the cube.",
        success=True,
        num_steps=steps,
        poses=generator.normal(size=(steps + 1, layout.state_dim)),
        actions=generator.normal(size=(steps, layout.action_dim)),
        frame_steps=np.arange(steps),
        images=np.full(shape, 60 + 20 * number, np.uint8),
        layout=layout,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("so100") / "set"
    write_lerobot(folder, [episode(1), episode(2)], 30.0)
    return folder


def read(folder, **declared):
    files = FilesConfig(paths=(str(folder),), **declared)
    recordings, hz = find_recordings(**files.reading(), image_size=64)
    return [recording.read() for recording in recordings], hz


def test_numbers_and_cameras_come_back(dataset):
    found, hz = read(dataset, numbers="joints")
    assert hz == 30.0 and [problems for _, problems in found] == [[], []]
    for number, (back, _) in enumerate(found, start=1):
        assert back.layout == SO100 and back.instruction == "Pick up the cube."
        np.testing.assert_allclose(back.actions, episode(number).actions, atol=1e-6)
        assert np.asarray(back.images).shape == (5, 2, 64, 64, 3)
        assert abs(int(np.asarray(back.images).mean()) - (60 + 20 * number)) < 4


def test_some_of_the_cameras_can_be_chosen(dataset):
    found, _ = read(dataset, numbers="raw", cameras=("wrist",))
    assert found[0][0].layout == Layout("raw", 6, 6, ("wrist",))
    with pytest.raises(
        UserError, match="has no video observation.images.top; all of observation.images.top are needed"
    ):
        read(dataset, numbers="raw", cameras=("top",))


def test_what_the_numbers_are_must_be_said(dataset):
    with pytest.raises(UserError, match=r"observation.state has shape \[6\], expected \[16\].*demos.files.numbers"):
        read(dataset)


def test_keys_without_images_are_cameras_too(dataset, tmp_path):
    folder = tmp_path / "pusht"
    write_lerobot(folder, [episode(1, Layout("raw", 2, 2, ("image",)))], 10.0)
    text = (folder / INFO_PATH).read_text().replace("observation.images.image", "observation.image")
    (folder / INFO_PATH).write_text(text)
    assert "observation.image" in json.loads(text)["features"]
    with pytest.raises(UserError, match="has no column videos/observation.image/"):
        read(folder, numbers="raw")


def test_sft_learns_from_it(dataset, tmp_path):
    write_episodes(tmp_path / "demos", [one for one, _ in read(dataset, numbers="joints")[0]])
    settings = SFTConfig(steps=2, batch_size=4, warmup=1, draws_per_sample=1, probe_weight=0.0)
    trained(SFTPlan(ModelConfig(), settings, tmp_path / "demos", stride=1, seed=0), tmp_path / "sft")
    policy, processor, _ = load_policy(tmp_path / "sft")
    assert policy.config.layout == SO100 and processor.stats.qpos_mean.shape == (6,)
