"""SFT on files of RoboTwin and LeRobot: what it sees, what it refuses, and a policy that then acts."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from algos.chunks import Timing
from envs.execution import Execution
from envs.pictures import fit
from rl_lab.common.errors import UserError
from rl_lab.config.actions import DemosConfig, FilesConfig, SFTConfig
from rl_lab.config.section import MemoryConfig, ModelConfig
from rl_lab.learner.actions import SFTPlan, num_commands, sized_config, starting_policy
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import publish, read_info
from rl_lab.records.action_batches import fit_processor
from rl_lab.records.action_datasets import DemonstrationStream
from rl_lab.records.episodes import read_episodes, write_episodes
from rl_lab.records.lerobot_write import write_lerobot
from rl_lab.records.sources import find_recordings
from rl_lab.rollouts.recorded_demos import record_demos
from rl_lab.run import main
from rl_lab.stages.kinds import KINDS, resolve_config, stage_functions
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.support.episodes import episode, read_folder
from tests.support.robotwin_files import write_classic, write_trajectory

RECIPE = ModelConfig(
    chunk_size=4, absolute_half=True, first_slot="current", memory=MemoryConfig(frames=3, interval=2, layer_stride=1)
)
SETTINGS = SFTConfig(steps=2, batch_size=4, warmup=1, probe_weight=0.0, augment=True, draws_per_sample=1)
STEPS = 12


def found(*paths, **options):
    return find_recordings(paths, **({"image_size": 64, "save_freq": 15, "split": "seen"} | options))


@pytest.fixture
def raw(tmp_path):
    for number in range(3):
        write_classic(tmp_path / "raw", number, steps=STEPS)
    return tmp_path / "raw"


@pytest.fixture
def demos(raw, tmp_path):
    """The stage's output."""
    write_episodes(tmp_path / "demos", [recording.read()[0] for recording in found(raw)[0]])
    return tmp_path / "demos"


@pytest.mark.parametrize("write", [write_classic, write_trajectory])
def test_robotwin_images_stay_in_their_files_and_come_back_the_same(tmp_path, write):
    write(tmp_path / "raw", 0, steps=STEPS)
    (recording,), hz = found(tmp_path / "raw")
    episode, problems = recording.read()
    whole = next(read_folder(tmp_path / "raw", image_size=64))
    assert problems == [] and hz == pytest.approx(250 / 15) and len(episode.images) == STEPS
    np.testing.assert_array_equal(np.asarray(episode.images), whole.images)
    np.testing.assert_array_equal(episode.images[np.array([5, 2, 5])], whole.images[[5, 2, 5]])


def test_lerobot_images_are_read_one_by_one(tmp_path, raw):
    episodes = list(read_folder(raw, image_size=64))
    write_lerobot(tmp_path / "set", episodes, 250 / 15)
    recordings, _ = found(tmp_path / "set", raw)
    assert [recording.format for recording in recordings] == ["lerobot"] * 3 + ["robotwin"] * 3
    episode, problems = recordings[1].read()
    assert problems == []
    difference = episode.images[np.array([7, 0])].astype(int) - episodes[1].images[[7, 0]]
    assert np.abs(difference).mean() < 3
    np.testing.assert_allclose(episode.actions, episodes[1].actions, atol=1e-6)


def test_another_image_size_is_the_simulators_scaling(tmp_path, raw):
    (recording, *_), _ = found(raw, image_size=32)
    native = next(read_folder(raw, image_size=32))
    assert recording.read()[0].images.shape == (STEPS, 3, 32, 32, 3)
    np.testing.assert_array_equal(fit(native.images[0, 0], 32), native.images[0, 0])


def test_truth_is_in_exports_of_a_simulator_and_not_in_robotwins_files(tmp_path, raw):
    write_lerobot(tmp_path / "set", [episode(1)], 12.5)
    recordings, _ = found(tmp_path / "set")
    assert recordings[0].has_truth() and not found(raw)[0][0].has_truth()
    (read, _) = recordings[0].read()
    np.testing.assert_array_equal(read.truth, episode(1).truth)


def test_sets_of_different_rates_are_refused(tmp_path, raw):
    write_lerobot(tmp_path / "set", read_folder(raw, image_size=32), 10)
    with pytest.raises(UserError, match="has 10.00 frames a second but .* has 16.67"):
        found(tmp_path / "set", raw)
    with pytest.raises(UserError, match="there is no .*nowhere"):
        found(tmp_path / "nowhere")


def test_the_numbers_survive_the_stage_without_the_images(demos, raw):
    for read, written in zip(read_episodes(demos), read_folder(raw, image_size=64), strict=True):
        np.testing.assert_array_equal(read.poses, written.poses)
        assert read.instruction == written.instruction and read.truth is None
    assert sum(path.stat().st_size for path in demos.glob("*.npz")) < 20_000


def stream(demos, timing, **options):
    episodes = read_episodes(demos)
    processor = fit_processor(sized_config(RECIPE), episodes, timing)
    return DemonstrationStream(episodes, processor, timing, batch_size=6, seed=0, **options)


TIMING = Timing(4, stride=2, first_slot="current", history=3, interval=2)


def test_batches_are_the_recipes_chunks_and_histories(demos):
    data = stream(demos, TIMING)
    batch, rows = data.batch(1), data._sampler.numbers(1)
    assert batch.observation.images.shape == (6, 3, 3, 3, 64, 64) and batch.actions.shape == (6, 8, 20)
    poses = []
    for place, row in enumerate(rows):
        episode, step = data.episodes[row // STEPS], row % STEPS
        poses.append(episode.poses[step])
        for slot, seen in enumerate((step - 8, step - 4, step)):
            shown = batch.observation.images[place, :, slot]
            expected = episode.images[np.array([max(seen, 0)])][0].transpose(0, 3, 1, 2) * (seen >= 0)
            np.testing.assert_array_equal(shown, expected)
    commands = data.processor.decode(batch.actions.numpy(), np.stack(poses))
    for row, chunk in zip(rows, commands, strict=True):
        wanted = data.episodes[row // STEPS].poses[np.minimum(row % STEPS + 2 * np.arange(4), STEPS)]
        np.testing.assert_allclose(chunk[:, :3], wanted[:, :3], atol=1e-5)
        np.testing.assert_allclose(chunk[:, 7], wanted[:, 7], atol=1e-5)


def test_statistics_are_of_every_slot_of_both_halves(demos):
    stats = stream(demos, TIMING).processor.stats
    assert stats.action_mean.shape == stats.action_mean_abs.shape == (4, 20)
    assert np.abs(stats.action_mean[0, :3]).max() < 1e-12 < np.abs(stats.action_mean[3, :3]).max()


def test_batches_follow_from_the_step_number_alone_augmented_or_not(demos):
    first, again = stream(demos, TIMING, augmented=True), stream(demos, TIMING, augmented=True)
    for step in range(3):
        wanted = first.batch(step)
    np.testing.assert_array_equal(again.batch(2).observation.images, wanted.observation.images)
    plain = stream(demos, TIMING).batch(2)
    np.testing.assert_array_equal(plain.actions, wanted.actions)
    assert (plain.observation.images != wanted.observation.images).any()


def train(demos, folder, model=RECIPE, **settings):
    training = Training(SFTPlan(model, SETTINGS.model_copy(update=settings), demos, stride=2, seed=0))
    while training.step < SETTINGS.steps:
        assert np.isfinite(training.run_step()["loss"])
    training.finish(folder)
    return folder


def test_a_policy_with_memory_and_absolute_poses_is_trained_and_acts(demos, tmp_path):
    folder = train(demos, tmp_path / "policy")
    info = read_info(folder)
    assert (info.history, info.history_interval, info.first_slot) == (3, 2, "current")
    unit = Unit(EnvSpec("tabletop", "handover_block", "clean", image_size=64), seeds=(3,), run_seed=0)
    (row,) = Simulation().evaluate(unit, publish(folder, 1), Execution(execute=3))
    assert row["num_steps"] > 0


def test_a_trained_policy_keeps_its_statistics_and_time_unless_asked(demos, tmp_path):
    folder = train(demos, tmp_path / "first")
    kept = starting_policy(ModelConfig(path=str(folder)), seed=0, stride=2)
    assert kept.processor is not None and kept.timing == Timing(4, 2, "current", 3, 2)
    other = starting_policy(ModelConfig(path=str(folder), chunk_size=6), seed=0, stride=2)
    assert other.processor is None and other.policy.chunk_size == 12
    larger = starting_policy(ModelConfig(path=str(folder), image_size=96), seed=0, stride=2)
    assert larger.policy.config.image_size == 96
    assert larger.processor is not None and larger.processor.fit_images(torch.zeros(1, 3, 64, 64)).shape[-1] == 96
    relative = ModelConfig(path=str(folder), absolute_half=False)
    assert num_commands(relative) == 4 and sized_config(relative).n_action_steps == 4


def test_a_tower_without_a_block_where_frames_meet_is_refused():
    with pytest.raises(ValueError, match="model.memory.layer_stride=2"):
        sized_config(ModelConfig(memory=MemoryConfig()))


class Here:
    """The cluster's simulation workers, in this process."""

    def simulation_pool(self):
        return nullcontext(self)

    def map(self, submit, units, check_stop):
        check_stop()
        actor = SimpleNamespace(read_recordings=SimpleNamespace(remote=Simulation().read_recordings))
        return [submit(actor, unit) for unit in units]


def record(raw, out, said, **options):
    files = FilesConfig(paths=(str(raw),), **options)
    config = SimpleNamespace(demos=DemosConfig(files=files), env=SimpleNamespace(image_size=64))
    context = SimpleNamespace(
        config=config, out=out, say=said.append, progress=lambda *_: None, check_stop=lambda: None
    )
    out.mkdir()
    record_demos(Here(), context)


def test_the_stage_names_every_problem_and_skips_only_when_asked(raw, tmp_path):
    for number in (1, 2):
        with h5py.File(raw / f"handover_block/demo_clean/data/episode{number}.hdf5", "r+") as file:
            file["endpose/left_endpose"][3] = np.nan
    said = []
    with pytest.raises(UserError, match="2 of 3 episodes are broken, the first: .*episode1.hdf5, frame 3.*skip_broken"):
        record(raw, tmp_path / "stopped", said)
    assert len(said) == 2 and "episode2.hdf5, frame 3: pose is not finite" in said[1]
    record(raw, tmp_path / "skipped", said, skip_broken=True)
    assert len(read_episodes(tmp_path / "skipped")) == 1
    assert len((tmp_path / "skipped/problems.jsonl").read_text().splitlines()) == 2


def test_the_contents_of_the_files_decide_the_hash_of_the_stage_and_their_names_do_not(raw, tmp_path):
    def params(folder, kind="demos"):
        config = resolve_config(
            {
                "name": "x",
                "stages": ["demos", "sft"],
                "sft": {"probe_weight": 0.0},
                "demos": {"files": {"paths": [str(folder)]}},
                "env": {"backend": "tabletop"},
            },
            "here",
        )
        return KINDS[kind].params(config)["demos"]

    before = params(raw)
    copy = shutil.copytree(raw, tmp_path / "copy")
    assert params(copy) == before and params(copy, "sft") == params(raw, "sft")
    with h5py.File(copy / "handover_block/demo_clean/data/episode1.hdf5", "r+") as file:
        file["endpose/left_endpose"][3] += 0.001
    assert params(copy) != before


RUN = """
name: recorded
stages: [demos, sft]
env: {image_size: 64}
model: {chunk_size: 4, absolute_half: true, first_slot: current, memory: {frames: 3, interval: 2, layer_stride: 1}}
demos: {files: {paths: [raw], stride: 2}}
sft: {steps: 2, warmup: 1, batch_size: 4, probe_weight: 0.0, augment: true}
workers: {simulation: 1}
wandb: disabled
"""


@contextmanager
def here(config):
    """Stages without Ray."""
    yield stage_functions(Here())


def break_episode(raw):
    with h5py.File(raw / "handover_block/demo_clean/data/episode1.hdf5", "r+") as file:
        file["endpose/left_endpose"][3] = np.nan


def break_picture(raw):
    with h5py.File(raw / "handover_block/demo_clean/data/episode1.hdf5", "r+") as file:
        file["observation/left_camera/rgb"][3] = b"\xff\xd8nothing"


def test_numbers_that_are_broken_stop_a_run_before_anything_is_written(raw, tmp_path, monkeypatch):
    break_episode(raw)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    with pytest.raises(
        UserError, match="^demos.files: 1 of 3 episodes are broken.*episode1.hdf5, frame 3: pose is not"
    ):
        main(["run.yaml", "stages=[demos]", "--run-dir", "stopped"], here)
    assert not (tmp_path / "stopped").exists()


def test_a_probe_without_truth_stops_a_run_before_anything_is_written(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    with pytest.raises(UserError, match="^sft.probe_weight needs .*episode0.hdf5 .demos.files. has not; set it to 0$"):
        main(["run.yaml", "env.backend=tabletop", "sft.probe_weight=1", "--run-dir", "stopped"], here)
    assert not (tmp_path / "stopped").exists()


def test_a_broken_episode_ends_a_run_with_2_unless_it_is_skipped(raw, tmp_path, monkeypatch, capsys):
    break_picture(raw)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    assert main(["run.yaml", "stages=[demos]", "--run-dir", "stopped"], here) == 2
    errors = capsys.readouterr().err
    assert "episode1.hdf5, frame 3: observation/left_camera/rgb cannot be decoded" in errors
    assert "1 of 3 episodes are broken" in errors and "skip_broken=true" in errors
    assert main(["run.yaml", "stages=[demos]", "demos.files.skip_broken=true", "--run-dir", "out"], here) == 0
    assert "skipped: " in capsys.readouterr().err
    assert len((tmp_path / "out/episodes/demos/index.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_run_reads_files_and_trains(raw, tmp_path):
    break_episode(raw)
    (tmp_path / "run.yaml").write_text(RUN)
    options = ["demos.files.skip_broken=true", "env.backend=tabletop", "--run-dir", "out"]
    command = [sys.executable, "-m", "rl_lab.run", "run.yaml", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/episodes/demos/index.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and (tmp_path / "out/checkpoints/sft/model.safetensors").is_file()
