"""FlowPRO on policies as Hy-VLA is released: frames of history, chunks of relative and absolute poses that begin with
the present one, and a checkpoint that is not the lab's own."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from envs.branching import BranchConfig
from envs.rollback import RollbackConfig
from envs.rollout import Memory
from rl_lab.common.errors import UserError
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.section import MemoryConfig, ModelConfig
from rl_lab.graph.record import substitutions
from rl_lab.learner.actions import OptimisePlan, SFTPlan
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import published, read_info
from rl_lab.records.episodes import read_pairs, write_candidates, write_episodes, write_pairs
from rl_lab.rollouts.ranking import rank_folder
from rl_lab.stages.flowpro import GivenKind
from rl_lab.stages.kinds import expand, load_config
from rl_lab.stages.preflight import check_machine
from rl_lab.workers.policy import CorrectorPlan
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.support.episodes import episode
from tests.support.experiments import EXPERIMENTS

MODEL = ModelConfig(
    chunk_size=5, absolute_half=True, first_slot="current", memory=MemoryConfig(frames=3, interval=2, layer_stride=1)
)
STEPS = {"steps": 2, "batch_size": 4, "warmup": 1, "draws_per_sample": 1}
UNIT = Unit(EnvSpec("tabletop", "handover_block", "clean", image_size=64), seeds=(3, 4), run_seed=0)
ROLLBACK = RollbackConfig(execute=4, rollback_steps=(1, 1), kept_after_event=8)


def trained(plan, folder):
    training = Training(plan)
    while training.step < plan.settings.steps:
        assert np.isfinite(training.run_step()["loss"])
    training.finish(folder)
    return training


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Demonstrations, a policy after SFT, and what it collects."""
    folder = tmp_path_factory.mktemp("given")
    write_episodes(folder / "demos", [episode(1), episode(2)])
    plan = SFTPlan(MODEL, SFTConfig(**STEPS), folder / "demos", stride=1, seed=0)
    trained(plan, folder / "sft")
    collection = Simulation().collect(UNIT, published(folder / "sft"), ROLLBACK, CorrectorPlan())
    write_pairs(folder / "pairs", collection.pairs)
    return folder


def test_its_failures_become_pairs_that_hold_what_it_saw_before(given):
    pairs = read_pairs(given / "pairs")
    assert any(pair.start_step for pair in pairs)
    assert [len(pair.before) for pair in pairs] == [min(pair.start_step, 4) for pair in pairs]


@pytest.mark.parametrize("train", [("expert",), ("vision", "vlm", "expert")])
@pytest.mark.parametrize("stored", [8.0, 0.0])
def test_a_round_keeps_the_memory_and_takes_stored_prefixes_or_its_own(given, tmp_path, train, stored):
    settings = OptimiseConfig(**STEPS, train=train, stored_prefix_gib=stored)
    folders = {"policy": given / "sft", "sft": given / "sft", "demos": given / "demos", "pairs": (given / "pairs",)}
    plan = OptimisePlan("rpro", 1, settings, ObjectiveConfig(), (0.8, 0.2), **folders, stride=1, seed=0)
    training = trained(plan, tmp_path / "policy")
    rows = training.parts.data.rows
    kept = rows.prefix if train == ("expert",) else rows.reference_prefix
    assert (kept is None) == (stored == 0.0)
    before, after = read_info(given / "sft"), read_info(tmp_path / "policy")
    assert after == replace(before, weight_version=2, steps=4) and after.memory == Memory(3, 2)


def test_a_teacher_may_have_a_memory_of_its_own(given):
    weights = published(given / "sft")
    collection = Simulation().collect(UNIT, weights, ROLLBACK, CorrectorPlan("policy x", weights, execute=4))
    assert collection.counts["corrector_steps"] > 0


def test_ranked_chunks_hold_what_was_seen_before_their_state(given, tmp_path):
    config = BranchConfig(execute=4, states=1, samples=2, decisions=1)
    states = Simulation().candidates(UNIT, published(given / "sft"), config)
    write_candidates(tmp_path / "candidates", states)
    rank_folder(tmp_path / "candidates", {}, {"random": 1.0}, 0.0, 0, tmp_path / "pairs")
    pairs = read_pairs(tmp_path / "pairs")
    assert len(pairs) == 2
    for pair, state in zip(pairs, states, strict=True):
        np.testing.assert_array_equal(pair.before, state.before)
        assert len(pair.before) == min(pair.start_step, 4)


def foreign(given, folder, **config):
    """The checkpoint without the lab's own file."""
    shutil.copytree(given / "sft", folder)
    (folder / "lab.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_a_released_policy_has_the_memory_and_the_chunks_of_the_release(given, tmp_path):
    info = read_info(foreign(given, tmp_path / "robotwin"))
    assert (info.memory, info.first_slot, info.weight_version) == (Memory(6, 5), "current", 0)
    info = read_info(foreign(given, tmp_path / "umi", use_video_encoder=False))
    assert (info.memory, info.first_slot) == (Memory(1, 1), "current")


def released_run(folder):
    changes = [f"model.path={folder}", "env.backend=tabletop", "env.image_size=64", "collect.execute=4"]
    return load_config(EXPERIMENTS / "flowpro_hyvla.yaml", [*changes, "eval.execute=4", "demos.episodes=2"])


def test_a_released_policy_takes_the_place_of_sft(given, tmp_path):
    config = released_run(foreign(given, tmp_path / "released"))
    check_machine(config)
    assert not [row for row in substitutions(config, []) if "probe" in row["used"]], "nothing was pre-trained here"
    nodes = {node.name: node for node in expand(config)}
    assert nodes["sft"].kind == "given" and nodes["base.evaluate"].inputs == {"policy": "sft"}
    context = SimpleNamespace(config=config, seed=0, out=tmp_path / "out")
    GivenKind().run(None, context)
    info = read_info(tmp_path / "out")
    assert (info.weight_version, info.memory, info.first_slot) == (1, Memory(6, 5), "current")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", given / "sft"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_policy_without_statistics_cannot_take_the_place_of_sft(given, tmp_path):
    folder = foreign(given, tmp_path / "released")
    for path in folder.glob("norm_stats.*"):
        path.unlink()
    with pytest.raises(UserError, match="has no statistics but predicts 10, so it cannot act; add sft to stages"):
        check_machine(released_run(folder))
