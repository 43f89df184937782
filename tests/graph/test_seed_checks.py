"""Episodes that a run is examined on are refused where it is given them to learn from."""

import dataclasses
import json

import pytest

from rl_lab.common.errors import UserError
from rl_lab.common.seeding import SPLIT_SIZE
from rl_lab.records.lerobot_write import write_lerobot
from rl_lab.records.sources import find_recordings
from rl_lab.stages.kinds import load_config
from rl_lab.stages.preflight import check_machine, examined
from tests.support.episodes import episode, poses
from tests.support.robotwin_files import write_classic

EXAMINED = 2 * SPLIT_SIZE
"""The first held-out seed."""
TEXT = """
name: seeds
env: {backend: tabletop, tasks: [handover_block]}
stages: [demos, sft, evaluate, {repeat: 1, of: [collect, optimise, evaluate]}]
sft: {probe_weight: 0.0}
eval: {episodes: 3}
wandb: disabled
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "seeds.yaml"
    path.write_text(TEXT)
    return lambda *overrides: load_config(path, overrides)


def recorded(folder, *seeds):
    """Demonstrations of a variant that is evaluated."""
    made = [dataclasses.replace(episode(number), seed=seed) for number, seed in enumerate(seeds)]
    write_lerobot(folder, made, 12.5)
    return made[0].variant


def test_what_is_examined_is_the_first_seeds_of_the_split(config):
    found = examined(config())
    assert {(task, seed) for task, _, seed in found} == {("handover_block", EXAMINED + number) for number in range(3)}
    development = examined(config("eval.seeds=development", "eval.episodes=1"))
    assert {seed for _, _, seed in development} == {SPLIT_SIZE}
    assert not examined(config("stages=[demos, sft]"))


def test_demonstrations_of_examined_episodes_are_refused_by_name(config, tmp_path):
    variant = recorded(tmp_path / "set", 7, EXAMINED + 1, EXAMINED + 3)
    loaded = config(f"demos.files={{paths: [{tmp_path / 'set'}]}}", f"env.variants=[{variant}]")
    with pytest.raises(
        UserError, match=rf"^demos.files: 1 episodes .*handover_block {variant} {EXAMINED + 1}\); leave"
    ):
        check_machine(loaded)
    check_machine(
        config(f"demos.files={{paths: [{tmp_path / 'set'}]}}", f"env.variants=[{variant}]", "eval.episodes=1")
    )


def test_corrections_of_examined_episodes_are_refused_by_name(config, tmp_path):
    path = tmp_path / "corrections.jsonl"
    row = {"task": "handover_block", "variant": "clean", "step": 30, "actions": [list(poses(2, 0)[0])]}
    path.write_text("".join(json.dumps(row | {"seed": seed}) + "\n" for seed in (5, EXAMINED)))
    loaded = config(f"collect.corrector={{kind: recorded, path: {path}}}", "env.variants=[clean]")
    with pytest.raises(UserError, match=f"^collect.corrector.path: 1 episodes .*handover_block clean {EXAMINED}"):
        check_machine(loaded)


def test_recordings_tell_their_seeds_without_being_read(tmp_path):
    write_classic(tmp_path / "raw", 0)
    recorded(tmp_path / "set", 41, 42)
    rest = {"image_size": 32, "save_freq": 20, "split": "seen"}
    found, _ = find_recordings([tmp_path / "raw", tmp_path / "set"], **rest)
    assert [recording.place()[2] for recording in found] == [100, 41, 42]
    (tmp_path / "raw/handover_block/demo_clean/seed.txt").write_text("no number")
    assert found[0].place() is None
